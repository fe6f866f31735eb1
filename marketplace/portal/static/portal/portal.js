// What HTML and htmx cannot do: countdowns, copying, and a select that needs no button. All pages work without it.
"use strict";

(() => {
  const serverNow = Date.parse(document.body.dataset.now || "");
  // The market's clock counts, not the visitor's.
  const offset = Number.isNaN(serverNow) ? 0 : serverNow - Date.now();

  const words = (seconds) => {
    if (seconds <= 0) return "now";
    const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
    const first = parts.findIndex(([size]) => seconds >= size);
    return parts.slice(first, first + 2).map(([size, unit]) => {
      const count = Math.floor(seconds / size);
      seconds -= count * size;
      return count ? `${count}\u00a0${unit}` : "";
    }).filter(Boolean).join(" ");
  };

  const tick = () => {
    for (const element of document.querySelectorAll("[data-until]")) {
      const left = Math.ceil((Date.parse(element.dataset.until) - Date.now() - offset) / 1000);
      element.textContent = words(left);
    }
  };
  setInterval(tick, 1000);
  tick();

  for (const button of document.querySelectorAll("[data-copy]")) {
    if (!navigator.clipboard) continue;
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(document.getElementById(button.dataset.copy).textContent);
      button.textContent = "Copied";
    });
  }

  for (const select of document.querySelectorAll("select[data-submit]")) {
    select.addEventListener("change", () => select.form.requestSubmit());
  }
})();
