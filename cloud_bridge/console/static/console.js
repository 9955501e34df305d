// Ages instead of times, and whether the page is live. Without this script the pages show times in UTC.
(() => {
  "use strict";

  const DAY = 86400;

  const age = (seconds) => {
    if (seconds < 2) return "now";
    if (seconds < 100) return `${Math.floor(seconds)} s ago`;
    if (seconds < 6000) return `${Math.floor(seconds / 60)} min ago`;
    return `${Math.floor(seconds / 3600)} h ago`;
  };

  const retell = () => {
    const now = Date.now();
    for (const element of document.querySelectorAll("time[datetime]")) {
      const at = new Date(element.dateTime);
      const seconds = (now - at) / 1000;
      if (Number.isNaN(seconds)) continue;
      element.dataset.utc ??= element.textContent;
      // A device whose clock is ahead, or an old time: the time itself says more than an age.
      const words = seconds < -5 || seconds > DAY ? element.dataset.utc : age(Math.max(0, seconds));
      if (element.textContent !== words) element.textContent = words;
    }
  };

  const tell = (words, level) => {
    const state = document.getElementById("link-state");
    state.hidden = false;
    state.className = `link-state ${level}`;
    if (state.textContent !== words) state.textContent = words;
  };

  document.addEventListener("htmx:sseOpen", () => tell("live", "good"));
  document.addEventListener("htmx:sseError", () => tell("reconnecting", "warn"));
  document.addEventListener("htmx:afterSwap", retell);
  retell();
  setInterval(retell, 1000);
})();
