// Canvas for drawing a digit. `onChange` gets the drawing as a PNG data URL, "" for an empty canvas.
function startCanvas(root, onChange) {
    const canvas = root.querySelector("canvas"), pen = canvas.getContext("2d");
    const side = canvas.width, step = 10; // pixels; an arrow key moves the pen by a step
    let last = null, hasInk = false, timer = null;
    const cursor = {x: side / 2, y: side / 4, down: false};
    pen.lineWidth = 22; pen.lineCap = pen.lineJoin = "round"; pen.strokeStyle = "#fff";
    function blank() { pen.fillStyle = "#000"; pen.fillRect(0, 0, side, side); hasInk = false; }
    const send = () => onChange(hasInk ? canvas.toDataURL("image/png") : "");
    function clear() { blank(); cursor.down = false; send(); }
    function line(from, to) {
        pen.beginPath(); pen.moveTo(from.x, from.y); pen.lineTo(to.x, to.y); pen.stroke(); hasInk = true;
    }
    function place(event) {
        const box = canvas.getBoundingClientRect();
        return {x: (event.clientX - box.left) * side / box.width, y: (event.clientY - box.top) * side / box.height};
    }
    function lift() { if (last) { last = null; send(); } }
    canvas.addEventListener("pointerdown", event => {
        if (event.button !== 0) return;
        canvas.setPointerCapture(event.pointerId);
        last = place(event);
        line(last, last);
    });
    canvas.addEventListener("pointermove", event => {
        if (!last) return;
        for (const each of event.getCoalescedEvents?.() ?? [event]) { const to = place(each); line(last, to); last = to; }
    });
    canvas.addEventListener("pointerup", lift);
    canvas.addEventListener("pointercancel", lift);
    canvas.addEventListener("keydown", event => {
        const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
        const from = {...cursor}, within = value => Math.min(Math.max(value, 0), side);
        if (event.key === "Delete" || event.key === "Backspace") clear();
        else if (event.key === " ") cursor.down = !cursor.down;
        else if (moves[event.key]) {
            cursor.x = within(cursor.x + step * moves[event.key][0]);
            cursor.y = within(cursor.y + step * moves[event.key][1]);
        } else return;
        event.preventDefault();
        if (!cursor.down) return;
        line(from, cursor);
        clearTimeout(timer);
        timer = setTimeout(send, 400);
    });
    root.querySelector("[data-clear]").addEventListener("click", clear);
    blank();
}
