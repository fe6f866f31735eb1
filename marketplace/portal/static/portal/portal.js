// What HTML and htmx cannot do: countdowns, copying, a select that needs no button, and prices as they are published.
// All pages work without it.
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

  // As `figures.rate` and `figures.day_time` write them.
  const money = (micros) => {
    const digits = String(Math.abs(micros)).padStart(7, "0");
    const whole = digits.slice(0, -6).replace(/\B(?=(\d{3})+$)/g, "\u202f");
    return `${micros < 0 ? "\u2212" : ""}${whole}.${digits.slice(-6).replace(/0+$/, "").padEnd(2, "0")}`;
  };
  const months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
  const dayTime = (at) => {
    const two = (number) => String(number).padStart(2, "0");
    const second = at.getUTCSeconds() ? `:${two(at.getUTCSeconds())}` : "";
    const clock = `${two(at.getUTCHours())}:${two(at.getUTCMinutes())}${second}`;
    return `${two(at.getUTCDate())} ${months[at.getUTCMonth()]} ${clock}`;
  };

  const live = document.querySelector("[data-stream]");
  if (live && "EventSource" in window) {
    const state = document.getElementById("live-state");
    const said = document.getElementById("live-said");
    const heard = new Set();
    let source = null;
    let again = 0;

    const show = (board, price) => {
      board.dataset.period = price.period_start;
      board.querySelector("[data-live=rate]").textContent = money(price.clearing_rate_micros_per_mtok);
      board.querySelector("[data-live=unit]").textContent = `${board.dataset.currency} per Mtok`;
      const time = document.createElement("time");
      time.dateTime = price.period_start;
      time.textContent = dayTime(new Date(price.period_start));
      board.querySelector("[data-live=basis]").replaceChildren("last clearing rate, ", time);
    };

    const take = (price) => {
      // Delivery is at least once, and a stream begins with what the page shows already.
      if (heard.has(price.auction_id)) return;
      heard.add(price.auction_id);
      const board = [...document.querySelectorAll("[data-grade]")].find((each) =>
        each.dataset.grade === price.grade && Number(each.dataset.version) === price.grade_version);
      if (!board) return;
      const rate = price.clearing_rate_micros_per_mtok;
      const isNewer = Date.parse(price.period_start) > (Date.parse(board.dataset.period) || 0);
      if (!isNewer || (rate === null && Date.parse(price.published_at) <= serverNow)) return;
      const period = dayTime(new Date(price.period_start));
      if (rate === null) {
        said.textContent = `${board.dataset.title}: no trade for ${period}`;
      } else {
        show(board, price);
        said.textContent = `${board.dataset.title}: ${money(rate)} ${board.dataset.currency} per Mtok, for ${period}`;
      }
      // The rest of the board, its charts among it, comes from the server, in place of the element that asked.
      if (window.htmx) window.htmx.trigger("[data-stream]", "price");
    };

    const stop = () => {
      clearTimeout(again);
      if (source) source.close();
      source = null;
    };

    const start = () => {
      stop();
      source = new EventSource(live.dataset.stream);
      source.addEventListener("open", () => { state.textContent = "Live: a price appears here when it is published."; });
      source.addEventListener("price", (event) => take(JSON.parse(event.data)));
      source.addEventListener("error", () => {
        // A stream that ends is opened again by the browser; one that was refused is not.
        if (!source || source.readyState !== EventSource.CLOSED) return;
        state.textContent = "Prices are read anew every 10 seconds.";
        again = setTimeout(start, 30000 + Math.random() * 30000);
      });
    };

    // Streams are few: a page that nobody looks at holds none.
    document.addEventListener("visibilitychange", () => (document.hidden ? stop() : start()));
    window.addEventListener("pagehide", stop);
    window.addEventListener("pageshow", (event) => { if (event.persisted) start(); });
    if (!document.hidden) start();
  }
})();
