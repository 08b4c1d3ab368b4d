const KEY = "parnet-deploy.api-key";
const COPIES = ["upload", "download"];
const COLOURS = 6;
const PASSING = ["status", "labels", "problem", "unlock", "again", "times", "stages"];
const SILENT = "The server did not answer: it has stopped, or it hung up on a file this large.";
const STRANGE =
  "That answer is not one of parnet-deploy. Is something else between its server and this page?";
const WHOLE =
  "This engine runs the network as a whole, so it has no streams to show. " +
  "Build a split engine to see them: parnet-deploy build-engine --split-streams.";
const SECOND = "These are times of a second run with the same image, which the total includes.";
const NO_FILE = "What was dropped is not a file. Save the image first, or copy and paste it.";
const PARTS = [
  ["prepare", "decode, resize, crop"],
  ["queue", "wait for the engine"],
  ["infer", "the network"],
  ["total", "in the server"],
];

const find = (id) => document.getElementById(id);
// Relative: a prefix before the page stays before it.
const question = `classify?top=${find("main").dataset.top}&trace=true`;
let chosen = null; // the file that is shown
let asking = null; // the AbortController of the request under way
let key = recall();

/** A sentence about what went wrong. */
class Refusal extends Error {
  constructor(message, { wait = 0, locked = false, again = false } = {}) {
    super(message);
    this.wait = wait; // seconds that the server asks for
    this.locked = locked; // an API key is asked for
    this.again = again; // the same request may succeed later
  }
}

// --- elements: every text goes in as a text ---------------------------------------------------

function make(tag, { text = "", style = "", ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  if (style) element.className = style;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...(text ? [text] : []), ...children);
  return element;
}

function draw(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function bar(share) {
  const inner = make("div");
  inner.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
  return make("div", { style: "bar", "aria-hidden": "true" }, inner);
}

/** Show these of the parts that come and go, and no others. */
function show(...ids) {
  for (const id of PASSING) find(id).hidden = !ids.includes(id);
}

// --- figures ----------------------------------------------------------------------------------

/** Seconds as milliseconds, four digits that mean something. */
function milliseconds(seconds) {
  const value = 1000 * seconds;
  const digits = value >= 1000 ? 0 : value >= 100 ? 1 : value >= 10 ? 2 : value >= 1 ? 3 : 4;
  return value.toFixed(digits);
}

function percent(share) {
  return share > 0 && share < 0.0001 ? "< 0.01 %" : `${(100 * share).toFixed(2)} %`;
}

function bytes(size) {
  return size < 1e6 ? `${Math.ceil(size / 1000)} kB` : `${(size / 1e6).toFixed(1)} MB`;
}

/** Round numbers of milliseconds from 0 to an end, at most six. */
function ticks(end) {
  const power = 10 ** Math.floor(Math.log10(end / 5));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => end / each <= 5);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return Array.from({ length: Math.floor(end / step + 1e-9) + 1 }, (_, i) => ({
    at: (i * step) / end,
    text: (i * step).toFixed(digits),
  }));
}

/** The share of a run in which at least two stages worked at once; copies are no stages. */
function overlap(spans) {
  const events = stagesOf(spans).flatMap((span) => [[span.start, 1], [span.end, -1]]);
  events.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  let [together, working, since] = [0, 0, 0];
  for (const [time, change] of events) {
    if (working >= 2) together += time - since;
    working += change;
    since = time;
  }
  const first = Math.min(...spans.map((span) => span.start));
  const last = Math.max(...spans.map((span) => span.end));
  return last > first ? together / (last - first) : 0;
}

function stagesOf(spans) {
  return spans.filter((span) => !COPIES.includes(span.stage));
}

// --- asking -----------------------------------------------------------------------------------

async function ask(file, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const begun = performance.now();
  let response;
  try {
    response = await fetch(question, { method: "POST", body: file, headers, signal });
  } catch {
    throw new Refusal(SILENT, { again: true });
  }
  if (!response.ok) throw await refusal(response);
  const answer = await response.json().catch(() => ({}));
  if (!answer?.predictions?.length || !answer.timing) throw new Refusal(STRANGE, { again: true });
  return { ...answer, roundTrip: (performance.now() - begun) / 1000 };
}

async function refusal(response) {
  const { status } = response;
  const said = await response.json().catch(() => null);
  const reason = typeof said?.error === "string" ? said.error : "";
  const wait = Number.parseInt(response.headers.get("Retry-After"), 10);
  return new Refusal(reason || `The server answered ${status} and did not say why.`, {
    wait,
    locked: status === 401,
    again: status === 408 || status === 429 || status >= 500,
  });
}

async function classify() {
  asking?.abort();
  const mine = (asking = new AbortController());
  show("status");
  find("status").textContent = "Asking the network …";
  find("result").setAttribute("aria-busy", "true");
  const [answer, error] = await ask(chosen, mine.signal).then(
    (answer) => [answer, null],
    (error) => [null, error],
  );
  if (mine !== asking) return; // another image was chosen meanwhile
  find("result").setAttribute("aria-busy", "false");
  if (error) showRefusal(error);
  else showAnswer(answer);
}

/** The button that was pressed goes away: what follows stays with the answer. */
function askAgain() {
  find("result").focus();
  classify();
}

function take(file) {
  if (!file) return;
  chosen = file;
  showImage(file);
  classify();
}

// --- showing ----------------------------------------------------------------------------------

function showImage(file) {
  const image = find("image");
  URL.revokeObjectURL(image.src);
  find("caption").textContent = [file.name, bytes(file.size)].filter(Boolean).join(", ");
  image.alt = file.name || "The image";
  image.hidden = false;
  image.src = URL.createObjectURL(file);
}

function showAnswer(answer) {
  find("labels").replaceChildren(...answer.predictions.map(labelled));
  showTimes(answer.timing, answer.roundTrip);
  showStages(answer.spans ?? []);
  show("labels", "times", "stages");
}

function labelled({ label, probability }) {
  const name = make("span", { text: label });
  const share = make("span", { text: percent(probability) });
  return make("li", {}, name, share, bar(probability));
}

function showTimes(timing, roundTrip) {
  const rows = PARTS.map(([part, meaning]) => timed(part, meaning, timing[part], roundTrip));
  rows.push(timed("round trip", "as this browser saw it", roundTrip, roundTrip));
  find("parts").replaceChildren(...rows);
}

function timed(part, meaning, seconds, whole) {
  const style = part === "total" || part === "round trip" ? "sum" : "";
  const head = make("th", { scope: "row", text: part }, " ", make("small", { text: meaning }));
  const share = make("td", { style: "wide" }, bar(seconds / whole));
  const time = make("td", { style: "n", text: milliseconds(seconds) });
  return make("tr", { style }, head, share, time);
}

function showStages(spans) {
  const several = new Set(stagesOf(spans).map((span) => span.stage)).size > 1;
  const share = Math.round(100 * overlap(spans));
  const told = `Two or more of them worked at the same time in ${share} % of the run.`;
  const second = spans.length > 0 ? ` ${SECOND}` : "";
  find("overlap").textContent = (several ? told : WHOLE) + second;
  find("timeline").hidden = spans.length === 0;
  if (spans.length > 0) showTimeline(spans);
}

function showTimeline(spans) {
  const devices = [...new Set(spans.map((span) => span.device))].sort();
  const end = Math.max(...spans.map((span) => span.end), 1e-9);
  const marks = ticks(1000 * end);
  const rows = lanesOf(spans).map((lane) => laneRow(lane, devices, end, marks));
  find("lanes").replaceChildren(...rows);
  const texts = marks.map(({ at, text }) =>
    draw("text", { x: `${100 * at}%`, y: "80%", "text-anchor": anchor(at) }, text),
  );
  const axis = make("td", { style: "wide" }, draw("svg", {}, ...texts));
  find("axis").replaceChildren(make("tr", {}, make("td"), axis, make("td")));
}

/** Spans of one stage on one device together, in the order in which they start. */
function lanesOf(spans) {
  const lanes = new Map();
  for (const span of [...spans].sort((a, b) => a.start - b.start || a.end - b.end)) {
    const name = JSON.stringify([span.stage, span.device]);
    lanes.set(name, [...(lanes.get(name) ?? []), span]);
  }
  return [...lanes.values()];
}

function laneRow(lane, devices, end, marks) {
  const [{ stage, device }] = lane;
  const colour = devices.indexOf(device) % COLOURS;
  const style = COPIES.includes(stage) ? "copy" : `device-${colour}`;
  const lines = marks.map(({ at }) =>
    draw("line", { x1: `${100 * at}%`, x2: `${100 * at}%`, y1: "0", y2: "100%" }),
  );
  const boxes = lane.map((span) =>
    draw("rect", {
      class: style,
      x: `${(100 * span.start) / end}%`,
      width: `${Math.max((100 * (span.end - span.start)) / end, 0.3)}%`,
      y: "18%",
      height: "64%",
      rx: "2",
    }),
  );
  const words = lane.map((span) => `${milliseconds(span.start)} to ${milliseconds(span.end)} ms`);
  const picture = draw("svg", { role: "img", "aria-label": words.join(", ") }, ...lines, ...boxes);
  const took = lane.reduce((sum, span) => sum + span.end - span.start, 0);
  return make(
    "tr",
    {},
    make("th", { scope: "row", text: stage }, " ", make("small", { text: device })),
    make("td", { style: "wide" }, picture),
    make("td", { style: "n", text: milliseconds(took) }),
  );
}

/** A tick's text does not leave the picture. */
function anchor(at) {
  return at < 0.04 ? "start" : at > 0.96 ? "end" : "middle";
}

function showRefusal({ message, wait, locked, again }) {
  find("reason").textContent = message;
  find("later").textContent = wait > 0 ? `The server asks to wait for ${wait} s.` : "";
  show("problem", ...(locked ? ["unlock"] : []), ...(again ? ["again"] : []));
  if (locked) find("key").focus();
}

// --- the key ----------------------------------------------------------------------------------

function recall() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return ""; // a browser that keeps nothing
  }
}

function unlock(event) {
  event.preventDefault();
  key = find("key").value.trim();
  find("key").value = "";
  try {
    sessionStorage.setItem(KEY, key);
  } catch {
    // It holds as long as the page is open.
  }
  askAgain();
}

// --- the camera -------------------------------------------------------------------------------

async function openCamera() {
  const video = { facingMode: "environment" };
  try {
    find("video").srcObject = await navigator.mediaDevices.getUserMedia({ video });
  } catch (error) {
    const denied = error.name === "NotAllowedError";
    showRefusal(new Refusal(denied ? "The camera may not be used." : "No camera was found."));
    return;
  }
  find("shoot").disabled = true; // until there is something to see
  find("viewfinder").showModal();
}

function shoot() {
  const video = find("video");
  const canvas = make("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  canvas.toBlob((blob) => take(blob && new File([blob], "camera.jpg")), "image/jpeg", 0.92);
  find("viewfinder").close();
}

function closeCamera() {
  const video = find("video");
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
}

// --- what is listened to ----------------------------------------------------------------------

find("file").addEventListener("change", (event) => {
  take(event.target.files[0]);
  event.target.value = ""; // the same file may be chosen again
});
document.addEventListener("paste", (event) => take(event.clipboardData?.files[0]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  find("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) find("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault(); // beside its place, too: the browser would leave for the image
  find("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) take(file);
  else showRefusal(new Refusal(NO_FILE));
});

find("image").addEventListener("load", ({ target }) => {
  find("caption").textContent += `, ${target.naturalWidth}x${target.naturalHeight}`;
});
find("image").addEventListener("error", ({ target }) => {
  target.hidden = true;
  find("caption").textContent += "; this browser cannot show it";
});
find("again").addEventListener("click", askAgain);
find("unlock").addEventListener("submit", unlock);
find("camera").addEventListener("click", openCamera);
// Not "loadeddata": until it plays, what is drawn of it may be black.
find("video").addEventListener("playing", () => {
  find("shoot").disabled = false;
  find("shoot").focus();
});
find("shoot").addEventListener("click", shoot);
find("leave").addEventListener("click", () => find("viewfinder").close());
find("viewfinder").addEventListener("close", closeCamera);
// Browsers offer a camera to pages of this machine and of https only.
find("camera").hidden = !navigator.mediaDevices?.getUserMedia;
find("curl").textContent =
  `curl --data-binary @cat.jpg ${new URL("classify", document.baseURI)}`;
