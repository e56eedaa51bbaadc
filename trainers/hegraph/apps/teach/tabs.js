// Tabs of the page. A button with `data-open` opens the tab of that name; the arrow keys move along the tabs.
const tabs = [...document.querySelectorAll("#top [role=tab]")];
function openTab(name) {
    document.querySelector(".hg-camera")?.dispatchEvent(new Event("close"));
    document.body.dataset.tab = name;
    for (const tab of tabs) {
        const panel = document.getElementById(tab.getAttribute("aria-controls")), chosen = tab.dataset.open === name;
        tab.setAttribute("aria-selected", chosen);
        tab.tabIndex = chosen ? 0 : -1;
        panel?.setAttribute("role", "tabpanel");
        panel?.setAttribute("aria-labelledby", tab.id);
    }
}
document.addEventListener("click", event => {
    const button = event.target.closest("[data-open]");
    if (!button) return;
    openTab(button.dataset.open);
    if (event.detail) button.blur(); // after a click of the mouse, the keys are those of the cards
});
document.getElementById("top").addEventListener("keydown", event => {
    const at = tabs.indexOf(event.target), last = tabs.length - 1;
    const to = {ArrowRight: at === last ? 0 : at + 1, ArrowLeft: at ? at - 1 : last, Home: 0, End: last}[event.key];
    if (to === undefined) return;
    event.preventDefault();
    tabs[to].focus();
    tabs[to].click();
});
openTab(tabs[0].dataset.open);
const sketch = element.querySelector("#draw");
startCanvas(sketch, value => { drawing = value; });
poll();
