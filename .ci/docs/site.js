// What the theme's script adds after loading, made usable with a keyboard and a screen reader.
function complete() {
  for (const wide of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) {
    wide.tabIndex = 0;
  }
  document.querySelectorAll("nav.md-code__nav").forEach((buttons, index) => {
    buttons.setAttribute("aria-label", `Copy block ${index + 1}`);
  });
}
new MutationObserver(complete).observe(document.documentElement, { childList: true, subtree: true });
complete();
