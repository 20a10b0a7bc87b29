// A camera that takes one picture and is off again. As sketch.js: `props.value` is the picture as a data URL (JPEG), ""
// before the first. Nothing leaves the browser but a picture that was taken, and the server keeps none.
const video = element.querySelector("video");
const picture = element.querySelector("img");
const button = element.querySelector("button");
const said = element.querySelector("[role=status]");
const SIDE = 320; // pixels: more than the network reads
const SENTENCES = {
  NotAllowedError: "The browser does not let this page use the camera: allow it beside the address.",
  NotFoundError: "No camera was found.",
  NotReadableError: "The camera is in use elsewhere.",
};
let stream = null;

const show = (shown) => {
  video.hidden = shown !== video;
  picture.hidden = shown !== picture;
};

const stop = () => {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  video.srcObject = null;
  button.textContent = "Start the camera";
};

const start = async () => {
  said.textContent = "";
  if (!navigator.mediaDevices) {
    said.textContent = "Browsers give a page the camera over https or on this machine only.";
    return;
  }
  button.disabled = true;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 }, facingMode: "environment" } });
    video.srcObject = stream;
    await video.play();
    show(video);
    button.textContent = "Take a picture";
  } catch (error) {
    stop();
    said.textContent = SENTENCES[error.name] ?? `The camera does not start: ${error.message}.`;
  } finally {
    button.disabled = false;
  }
};

const take = () => {
  const side = Math.min(video.videoWidth, video.videoHeight);
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = Math.min(SIDE, side);
  const [left, top] = [(video.videoWidth - side) / 2, (video.videoHeight - side) / 2];
  canvas.getContext("2d").drawImage(video, left, top, side, side, 0, 0, canvas.width, canvas.height);
  picture.src = canvas.toDataURL("image/jpeg", 0.92);
  show(picture);
  stop();
  props.value = picture.src;
};

button.addEventListener("click", () => (stream ? take() : start()));
// A camera that nobody looks at is off: another tab was opened.
new IntersectionObserver(([entry]) => {
  if (entry.isIntersecting || !stream) return;
  stop();
  show(picture.src ? picture : null);
}).observe(element);
