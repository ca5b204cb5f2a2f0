"use strict";
(() => {
  // a printed page is light and shows what is folded
  const root = document.documentElement;
  addEventListener("beforeprint", () => {
    root.dataset.theme = "light";
    document.querySelectorAll("details:not([open])").forEach((d) => { d.open = true; d.dataset.printed = ""; });
  });
  addEventListener("afterprint", () => {
    delete root.dataset.theme;
    document.querySelectorAll("details[data-printed]").forEach((d) => { d.open = false; delete d.dataset.printed; });
  });
})();
