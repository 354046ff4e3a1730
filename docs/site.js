document.addEventListener("DOMContentLoaded", () => {
  // Typesets what pymdownx.arithmatex marked, by KaTeX's files beside this one.
  for (const element of document.querySelectorAll(".arithmatex")) {
    renderMathInElement(element, {
      delimiters: [
        { left: "\\(", right: "\\)", display: false },
        { left: "\\[", right: "\\]", display: true },
      ],
    });
  }
  // On a narrow screen names break where their parts meet, and no number leaves its interval.
  for (const code of document.querySelectorAll(".md-typeset :not(pre) > code")) {
    if (code.childElementCount === 0 && code.textContent.length > 12) {
      code.innerHTML = code.innerHTML.replace(/([_.:@/=,])(?=[A-Za-z-])/g, "$1<wbr>");
    }
  }
  for (const cell of document.querySelectorAll(".md-typeset td")) {
    if (cell.childElementCount === 0) cell.textContent = cell.textContent.replace(/ ± /g, "\u00a0±\u00a0");
  }
});
