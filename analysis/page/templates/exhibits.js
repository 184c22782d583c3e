"use strict";
// Copies commands and saves figures. What it adds is of no use without a script, so the page has none of it.
(() => {
  const button = (text, label, act) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.setAttribute("aria-label", label);
    made.addEventListener("click", () => act(made));
    return made;
  };

  const copy = async (code, made) => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      made.textContent = "Copied";
      setTimeout(() => { made.textContent = "Copy"; }, 1500);
    } catch { // no clipboard: what is selected can be copied by hand
      getSelection().selectAllChildren(code);
    }
  };

  const withCopy = (typed) => {
    const code = typed.querySelector("code");
    typed.append(button("Copy", "Copy this command", (made) => copy(code, made)));
  };

  const saveFigure = (figure) => {
    const svg = figure.querySelector("svg").cloneNode(true);
    svg.querySelectorAll("[data-row]").forEach((mark) => mark.removeAttribute("data-row"));
    svg.setAttribute("width", figure.style.getPropertyValue("--width"));
    // an image viewer knows no page whose variables these are
    const text = new XMLSerializer().serializeToString(svg).replace(/var\(--[a-z]+, (#[0-9a-f]+)\)/gi, "$1");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    link.download = `${figure.dataset.key}.svg`;
    link.click();
    URL.revokeObjectURL(link.href);
  };

  document.querySelectorAll(".typed").forEach(withCopy);
  document.querySelectorAll(".drawing").forEach((figure) => {
    const caption = figure.querySelector("figcaption");
    caption.append(" ", button("SVG", `Save as SVG: ${figure.dataset.key}`, () => saveFigure(figure)));
  });
  window.brittle = { button, withCopy };
})();
