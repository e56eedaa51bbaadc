// The search takes a word such as --shots for the exclusion of "shots". Leading hyphens are therefore removed from a query.
const send = Worker.prototype.postMessage
Worker.prototype.postMessage = function (message, ...rest) {
  const isQuery = message && typeof message.data === "string"
  const sent = isQuery ? { ...message, data: message.data.replace(/(^|\s)-+(?=\w)/g, "$1") } : message
  return send.call(this, sent, ...rest)
}

// Wide code and tables are tab stops, so that the keyboard can scroll them. The theme makes code a tab stop for the mouse only.
function completeTabStops() {
  for (const area of document.querySelectorAll("pre > code, .md-typeset__scrollwrap")) {
    if (area.scrollWidth > area.clientWidth && !area.hasAttribute("tabindex")) area.tabIndex = 0
  }
}
document.querySelector("[data-md-component=search]")?.setAttribute("aria-label", "Search")
new MutationObserver(completeTabStops).observe(document.body, { subtree: true, childList: true, attributeFilter: ["tabindex"] })
addEventListener("resize", completeTabStops)
addEventListener("load", completeTabStops)
