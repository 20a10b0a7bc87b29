// The step that is looked at, and what is saved. The page's server knows nothing of either.
(() => {
  const PLAY_MS = 900;
  let timer = null;

  const card = () => document.getElementById("answer-card");
  const steps = () => Number(card()?.dataset.steps ?? 1);
  const now = () => Number(document.body.dataset.t ?? 1);
  const words = () => `step ${now()} of ${steps()}`;

  function go(t) {
    t = Math.min(Math.max(t, 1), steps());
    document.body.dataset.t = t;
    const range = document.getElementById("step-range");
    if (range) {
      range.max = steps();
      range.value = t;
      range.setAttribute("aria-valuetext", words());
      document.getElementById("step-now").textContent = words();
    }
    link();
  }

  function play(on) {
    clearInterval(timer);
    timer = null;
    if (on) {
      if (now() >= steps()) go(1);
      timer = setInterval(() => {
        if (now() >= steps()) return play(false);
        go(now() + 1);
      }, PLAY_MS);
    }
    const button = document.getElementById("play");
    if (button) {
      button.textContent = on ? "❚❚ Pause" : "▶ Play";
      button.setAttribute("aria-label", on ? "Pause" : "Play");
    }
  }

  // The address names what is shown, where others can be shown it: a sample, not somebody's own picture.
  function link() {
    const shown = card()?.dataset;
    if (!shown) return;
    let query = shown.link ?? "";
    if (shown.link !== undefined && now() !== Number(shown.exit)) query += `${query ? "&" : ""}t=${now()}`;
    const kept = new URLSearchParams(location.search).get("__theme");
    if (kept) query += `${query ? "&" : ""}__theme=${kept}`;
    const address = location.pathname + (query ? `?${query}` : "");
    if (address !== location.pathname + location.search) history.replaceState(history.state, "", address);
  }

  // What serve/ui/link.py takes for a step; of anything else it tells the visitor.
  const STEP = /^[0-9]{1,9}$/;
  let wanted = new URLSearchParams(location.search).get("t");
  function renewed() {
    if (!card()) return play(false);
    play(false);
    go((STEP.test(wanted) && Number(wanted)) || Number(card().dataset.exit));
    wanted = null;
  }

  // Gradio keeps the elements and changes what is in them. A new answer is another picture or another exit: to open a
  // tab, or to look at another layer, is none, and leaves the step where it is.
  const pictures = () => [...card().querySelectorAll("img")].map((image) => image.src);
  const answered = () => card() && [card().dataset.steps, card().dataset.exit, ...pictures()].join();
  // Two clicks in a row on a slow line: the second was sent before the first was answered, and knew nothing of it.
  const SETTLED_MS = 400;
  let settled = null;
  function overtaken() {
    const [source, tab] = ["#source", "#hidden-tab"].map((id) => document.querySelector(`${id} textarea, ${id} input`)?.value);
    const shown = card()?.dataset;
    if (shown && source && tab && (shown.source !== source || shown.tab !== tab)) document.getElementById("hidden-again")?.click();
  }

  // Gradio calls a sample "Thumbnail 3 of 20".
  function named() {
    document.querySelectorAll("#samples .thumbnail-item").forEach((picture, index) => {
      picture.setAttribute("aria-label", `${picture.querySelector(".caption-label")?.textContent.trim()}, sample ${index}`);
    });
  }

  // Gradio says nothing of a call that was refused: the page would stand still without a word.
  function refused(words) {
    let told = document.getElementById("refused");
    if (!words) return told?.remove();
    if (!told) {
      told = Object.assign(document.createElement("div"), { id: "refused", className: "card alert" });
      told.setAttribute("role", "alert");
      (document.querySelector(".gradio-container") ?? document.body).append(told);
    }
    told.textContent = words;
  }
  const ask = window.fetch;
  window.fetch = async (...request) => {
    const click = String(request[0]?.url ?? request[0]).includes("/gradio_api/run/");
    try {
      const answer = await ask.apply(window, request);
      const said = click && !answer.ok && (await answer.clone().json().catch(() => null))?.error;
      if (click) refused(answer.ok ? "" : said || `The server refused this (${answer.status}).`);
      return answer;
    } catch (error) {
      if (click && error.name !== "AbortError") refused("The server does not answer. Is it there? Try again.");
      throw error;
    }
  };

  let known = null;
  new MutationObserver(() => {
    clearTimeout(settled);
    settled = setTimeout(() => [overtaken, named].forEach((each) => each()), SETTLED_MS);
    const answer = answered();
    if (answer !== known) {
      known = answer;
      return renewed();
    }
    if (!answer) return;
    const said = document.getElementById("step-now");
    if (said && said.textContent !== words()) go(now());
    link();
  }).observe(document.documentElement, {
    childList: true,
    subtree: true,
    attributes: true,
    attributeFilter: ["src", "data-steps", "data-exit", "data-link"],
  });

  document.addEventListener("click", (event) => {
    const hit = event.target.closest("#play, #back, #forward, [data-save], [data-step], #copy-link, #save-all");
    if (!hit) return;
    if (hit.id === "play") return play(timer === null);
    if (hit.id === "copy-link") return copied(hit);
    if (hit.id === "save-all") return download("tserve.json", json(everything()));
    if (hit.dataset.save) return save(hit.closest("figure"), hit.dataset.save);
    play(false);
    if (hit.id === "back") go(now() - 1);
    else if (hit.id === "forward") go(now() + 1);
    else go(Number(hit.dataset.step));
  });

  // Which picture was chosen last, before Gradio hears of it: the server is told by serve/ui/page.py.
  const choose = (event) => {
    const picture = event.target.closest("#samples .thumbnail-item");
    if (picture) document.body.dataset.sample = [...document.querySelectorAll("#samples .thumbnail-item")].indexOf(picture);
  };
  document.addEventListener("click", choose, true);

  document.addEventListener("input", (event) => {
    if (event.target.id !== "step-range") return;
    play(false);
    go(Number(event.target.value));
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !card()) return;
    if (event.target.closest("input, textarea, select, button, canvas, summary, [role=slider], [role=tab], [role=listbox], [contenteditable]")) return;
    if (event.key === "ArrowLeft") go(now() - 1);
    else if (event.key === "ArrowRight") go(now() + 1);
    else if (event.key === " ") play(timer === null);
    else return;
    event.preventDefault();
  });

  async function copied(button) {
    try {
      await navigator.clipboard.writeText(location.href);
      button.textContent = "copied";
    } catch {
      button.textContent = "copy it from the address bar";
    }
    setTimeout(() => (button.textContent = "Copy link"), 2000);
  }

  const json = (value) => new Blob([JSON.stringify(value, null, 1)], { type: "application/json" });
  const data = (element) => JSON.parse(element.querySelector("data.numbers").textContent);
  const visible = (element) => element.offsetParent !== null;

  function everything() {
    const figures = [...document.querySelectorAll("figure.card")].filter(visible);
    return {
      address: location.href,
      step: now(),
      answer: card() ? data(card()) : null,
      figures: Object.fromEntries(figures.map((figure) => [figure.id, { title: figure.dataset.title, ...data(figure) }])),
    };
  }

  function download(name, blob) {
    const anchor = document.createElement("a");
    anchor.href = URL.createObjectURL(blob);
    anchor.download = name;
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(anchor.href), 10000);
  }

  function save(figure, kind) {
    if (kind === "json") return download(`${figure.id}.json`, json({ title: figure.dataset.title, step: now(), ...data(figure) }));
    const svg = figure.querySelector("svg");
    if (svg) picture(svg, figure.dataset.title).then((blob) => download(`${figure.id}.png`, blob));
  }

  // A picture of an SVG as it looks now: with the style sheet's colours written into it, the title above, on paper.
  const STYLES = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-weight", "font-family", "text-anchor", "image-rendering", "font-variant-numeric"];
  async function picture(svg, title) {
    const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
    const copy = svg.cloneNode(true);
    const originals = [svg, ...svg.querySelectorAll("*")];
    const gone = [];
    [copy, ...copy.querySelectorAll("*")].forEach((element, i) => {
      const style = getComputedStyle(originals[i]);
      if (style.display === "none") gone.push(element);
      for (const name of STYLES) element.style.setProperty(name, style.getPropertyValue(name));
    });
    gone.forEach((element) => element.remove());
    const root = getComputedStyle(svg);
    const head = 30, margin = 12, scale = 2;
    copy.setAttribute("x", margin);
    copy.setAttribute("y", head);
    copy.setAttribute("width", width);
    copy.setAttribute("height", height);
    const full = [width + 2 * margin, height + head + margin];
    const words = document.createElement("span");
    words.textContent = title;
    const around =
      `<svg xmlns="http://www.w3.org/2000/svg" width="${full[0] * scale}" height="${full[1] * scale}" viewBox="0 0 ${full[0]} ${full[1]}">` +
      `<rect width="100%" height="100%" fill="${root.getPropertyValue("--paper")}"/>` +
      `<text x="${margin}" y="20" font-family="Arial, sans-serif" font-size="14" font-weight="600" fill="${root.getPropertyValue("--ink")}">${words.innerHTML}</text>` +
      `${new XMLSerializer().serializeToString(copy)}</svg>`;
    const url = URL.createObjectURL(new Blob([around], { type: "image/svg+xml" }));
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [full[0] * scale, full[1] * scale];
    canvas.getContext("2d").drawImage(image, 0, 0);
    URL.revokeObjectURL(url);
    return new Promise((done) => canvas.toBlob(done, "image/png"));
  }
})();
