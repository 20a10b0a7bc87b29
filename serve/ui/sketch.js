// A sheet of paper to draw a digit on, with mouse, pen or finger. Gradio runs this where serve/ui/inputs.py puts it:
// `element` is the component's HTML, `props.value` what the server is sent: a PNG as a data URL, "" for clean paper. To
// set it triggers the component's `change`.
const canvas = element.querySelector("canvas");
const pen = canvas.getContext("2d");
let last = null;

const place = (event) => {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width; // both are square
  return [scale * (event.clientX - box.left), scale * (event.clientY - box.top)];
};

const draw = (event) => {
  // Between two frames a fast pen has been in many places.
  const moves = event.getCoalescedEvents?.() ?? [];
  for (const move of moves.length ? moves : [event]) {
    const next = place(move);
    pen.beginPath();
    pen.moveTo(...last);
    pen.lineTo(...next);
    pen.stroke();
    last = next;
  }
};

// About as thick as the digits of MNIST and of scikit-learn, once the sketch is as small as they are.
Object.assign(pen, { lineWidth: canvas.width / 9, lineCap: "round", lineJoin: "round", strokeStyle: "black" });

canvas.addEventListener("pointerdown", (event) => {
  if (!event.isPrimary || event.button !== 0) return;
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  last = place(event);
  draw(event); // a tap is a dot
});
canvas.addEventListener("pointermove", (event) => last && event.isPrimary && draw(event));
const lift = (event) => {
  if (!last || !event.isPrimary) return;
  last = null;
  props.value = canvas.toDataURL("image/png");
};
canvas.addEventListener("pointerup", lift);
canvas.addEventListener("pointercancel", lift);

element.querySelector("button").addEventListener("click", () => {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  props.value = "";
});
