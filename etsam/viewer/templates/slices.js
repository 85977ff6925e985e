// The slices of one mask (slices.html). A plane's logits are stored as the number of thresholds ("stops") that each
// lies above, so that the mask at stop k is where that number exceeds k: the same voxels as `etsam threshold` writes.
'use strict';
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId('data').textContent);
const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name)
  .match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16));
const MASK = colourOf('--mask'), DOUBT = colourOf('--doubt'); // of page.css
const LAYERS = [['left-out', true], ['doubt', false]].filter(([name]) => byId(`show-${name}`)); // shown at the start?
const KEPT = 16; // unpacked planes
// both lines of a membrane would run together, and hide it, where a voxel has little more than one pixel of the screen
const STYLE = data.views[0].width > 500 ? 'fill' : 'outline';
const state = { view: 0, at: data.views.map((view) => view.start), stop: data.start,
  style: STYLE, final: data.post_processed };
const planes = new Map();
let drawing = 0;

function bytesOf(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

// zlib, then sums down the columns: the reverse of `packed` of page.py
async function unpack(text, width) {
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream('deflate'));
  const values = new Uint8Array(await new Response(stream).arrayBuffer());
  for (let i = width; i < values.length; i++) values[i] += values[i - width];
  return values;
}

async function load(view, plane) {
  if (planes.has(plane)) return planes.get(plane);
  const loaded = { logits: await unpack(plane.logits, view.width),
    mask: plane.mask ? await unpack(plane.mask, view.width) : null,
    leftOut: plane.left_out ? await unpack(plane.left_out, view.width) : null,
    doubt: plane.doubt ? await unpack(plane.doubt, Math.ceil(view.width / data.doubt.reduction)) : null };
  planes.set(plane, loaded);
  if (planes.size > KEPT) planes.delete(planes.keys().next().value);
  return loaded;
}

function maskOf(loaded) {
  if (state.final && loaded.mask) return loaded.mask;
  const mask = new Uint8Array(loaded.logits.length);
  for (let i = 0; i < mask.length; i++) mask[i] = loaded.logits[i] > state.stop ? 1 : 0;
  return mask;
}

// Lines between voxels of the mask and others, `unit` canvas pixels a voxel; the picture's own border is no outline.
function outlineOf(mask, width, height, unit) {
  const path = new Path2D();
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (x + 1 < width && mask[i] !== mask[i + 1]) {
        path.moveTo((x + 1) * unit, y * unit);
        path.lineTo((x + 1) * unit, (y + 1) * unit);
      }
      if (y + 1 < height && mask[i] !== mask[i + width]) {
        path.moveTo(x * unit, (y + 1) * unit);
        path.lineTo((x + 1) * unit, (y + 1) * unit);
      }
    }
  }
  return path;
}

function paint(mask, view, scale) {
  const canvas = byId('mask'), outline = state.style === 'outline';
  const unit = outline ? Math.max(1, Math.min(8, Math.round(scale * window.devicePixelRatio))) : 1;
  canvas.width = view.width * unit;
  canvas.height = view.height * unit;
  canvas.classList.toggle('smooth', outline);
  if (state.style === 'none') return;
  const context = canvas.getContext('2d');
  if (outline) {
    context.strokeStyle = `rgb(${MASK})`;
    context.lineWidth = Math.max(1, (scale < 1 ? 1.2 : 2) * unit / scale);
    context.lineCap = 'square';
    context.stroke(outlineOf(mask, view.width, view.height, unit));
    return;
  }
  const picture = context.createImageData(view.width, view.height);
  for (let i = 0; i < mask.length; i++) {
    if (mask[i]) picture.data.set([...MASK, 255], 4 * i);
  }
  context.putImageData(picture, 0, 0);
}

// a layer below the mask, half as strong as its values, 0 to 1, say: as in the picture beside the mask
function paintLayer(name, values, width, colour, most) {
  const canvas = byId(name), shown = values && byId(`show-${name}`).checked;
  canvas.hidden = !shown;
  if (!shown) return;
  canvas.width = width;
  canvas.height = values.length / width;
  const context = canvas.getContext('2d'), picture = context.createImageData(canvas.width, canvas.height);
  for (let i = 0; i < values.length; i++) picture.data.set([...colour, 127.5 * values[i] / most], 4 * i);
  context.putImageData(picture, 0, 0);
}

function paintLayers(loaded, view) {
  paintLayer('left-out', loaded.leftOut, view.width, [0, 0, 0], 1);
  if (data.doubt) paintLayer('doubt', loaded.doubt, Math.ceil(view.width / data.doubt.reduction), DOUBT, data.doubt.levels);
}

// length of the scale bar: 1, 2 or 5 times a power of ten, at most a third of the picture
function nice(length) {
  const power = 10 ** Math.floor(Math.log10(length));
  return [5, 2, 1].find((factor) => factor * power <= length) * power;
}

function layout(view) {
  const nm = data.voxel_nm || { x: 1, y: 1, z: 1 };
  const across = view.width * nm[view.across], up = view.height * nm[view.up];
  const stage = byId('stage'), zoom = Number(byId('zoom').value);
  stage.style.setProperty('--ratio', `${across} / ${up}`);
  stage.style.setProperty('--zoom', zoom);
  const tall = window.innerHeight * (window.innerWidth < 768 ? 0.6 : 0.74);
  stage.style.setProperty('--fit', Math.max(240, tall * across / up));
  const pixels = byId('grey').getBoundingClientRect().width;
  const length = nice(across * stage.clientWidth / pixels / 3);
  byId('scale').hidden = false;
  byId('scale-text').textContent = data.voxel_nm ? (length >= 1000 ? `${length / 1000} µm` : `${length} nm`)
    : `${length} voxels`;
  byId('scale').querySelector('i').style.width = `${length / across * pixels}px`;
  const scale = pixels / view.width;
  document.querySelector('.layers').classList.toggle('coarse', scale > 1);
  return scale;
}

function say(view, plane, mask) {
  let count = 0;
  for (const value of mask) count += value;
  const share = (100 * count / mask.length).toFixed(2);
  const of = view.axis === 'z' ? 'slice' : 'side view';
  const how = state.final ? 'after post-processing' : `threshold ${data.stops[state.stop]}`;
  const text = `${of} ${view.axis} = ${plane.at}: ${share} % membrane, ${how}`;
  byId('status').textContent = text;
  byId('stage').setAttribute('aria-label', text);
  byId('slice').setAttribute('aria-valuetext', `${view.axis} = ${plane.at}`);
}

async function draw() {
  const turn = ++drawing, view = data.views[state.view], plane = view.planes[state.at[state.view]];
  const slice = byId('slice'), threshold = byId('threshold');
  slice.max = view.planes.length - 1;
  slice.value = state.at[state.view];
  threshold.value = state.stop;
  threshold.setAttribute('aria-valuetext', String(data.stops[state.stop]));
  byId('threshold-value').textContent = data.stops[state.stop];
  byId('threshold-note').textContent = state.stop === data.start ? 'as in the file of the mask'
    : `the mask in the file: ${data.stops[data.start]}`;
  byId('final').checked = state.final;
  byId('command').textContent = `${data.command} ${data.stops[state.stop]}`;
  document.querySelector(`[name=style][value=${state.style}]`).checked = true;
  document.querySelector(`[name=view][value="${state.view}"]`).checked = true;
  byId('grey').src = `data:image/jpeg;base64,${plane.grey}`;
  const scale = layout(view);
  filters();
  let loaded;
  try {
    loaded = await load(view, plane);
  } catch (error) {
    byId('status').textContent = `The mask cannot be shown by this browser (${error.message}); a newer one can.`;
    return;
  }
  if (turn !== drawing) return; // another slice is asked for already
  const mask = maskOf(loaded);
  paint(mask, view, scale);
  paintLayers(loaded, view);
  say(view, plane, mask);
}

function filters() {
  const value = (name) => Number(byId(name).value);
  byId('grey').style.filter = `brightness(${value('brightness')}%) contrast(${value('contrast')}%)`;
  byId('mask').style.opacity = value('opacity') / 100;
  for (const name of ['opacity', 'brightness', 'contrast']) byId(`${name}-value`).textContent = `${value(name)} %`;
  byId('zoom-value').textContent = `${value('zoom')} ×`;
}

function go(steps) {
  const last = data.views[state.view].planes.length - 1;
  const to = Math.min(last, Math.max(0, state.at[state.view] + steps));
  if (to === state.at[state.view]) return;
  state.at[state.view] = to;
  draw();
}

function setStop(stop) {
  state.stop = Math.min(data.stops.length - 1, Math.max(0, stop));
  state.final = false;
  draw();
}

function flip(layer) {
  const box = byId(`show-${layer}`);
  if (box) box.click();
}

function setStyle(style) {
  state.style = style;
  byId('opacity').value = style === 'fill' ? 50 : 100;
  draw();
}

const KEYS = {
  ArrowRight: (event) => go(event.shiftKey ? 10 : 1),
  ArrowLeft: (event) => go(event.shiftKey ? -10 : -1),
  '[': () => setStop(state.stop - 1),
  ']': () => setStop(state.stop + 1),
  m: () => setStyle({ outline: 'fill', fill: 'none', none: 'outline' }[state.style]),
  l: () => flip('left-out'),
  u: () => flip('doubt'),
  v: () => { state.view = (state.view + 1) % data.views.length; draw(); },
};
const STAGE_KEYS = { // with the picture in focus
  ArrowUp: () => go(1), ArrowDown: () => go(-1), PageUp: () => go(10), PageDown: () => go(-10),
  Home: () => go(-1e9), End: () => go(1e9),
};
document.addEventListener('keydown', (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target instanceof HTMLInputElement && event.key.length > 1; // arrows belong to the slider
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = (event.target === byId('stage') && STAGE_KEYS[key]) || (!typing && KEYS[key]);
  if (!action) return;
  event.preventDefault();
  action(event);
});

let turned = 0;
byId('stage').addEventListener('wheel', (event) => {
  if (event.ctrlKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) return; // the browser's zoom; sideways
  event.preventDefault();
  turned += event.deltaMode ? event.deltaY * 40 : event.deltaY;
  const steps = Math.trunc(turned / 40);
  turned -= steps * 40;
  if (steps) go(Math.sign(steps));
}, { passive: false });

byId('stage').addEventListener('pointermove', (event) => {
  const view = data.views[state.view], plane = view.planes[state.at[state.view]];
  const box = byId('mask').getBoundingClientRect();
  const position = { [view.axis]: plane.at };
  position[view.across] = Math.floor((event.clientX - box.left) / box.width * view.width);
  position[view.up] = Math.floor((box.bottom - event.clientY) / box.height * view.height);
  const loaded = planes.get(plane);
  let doubt = '';
  if (data.doubt && loaded) {
    const { reduction, levels, most } = data.doubt, width = Math.ceil(view.width / reduction);
    const at = Math.floor(position[view.up] / reduction) * width + Math.floor(position[view.across] / reduction);
    doubt = `, about ${Math.round(100 * most * loaded.doubt[at] / levels)} % likely to be wrong`;
  }
  byId('pointer').textContent =
    `under the pointer: x ${position.x}, y ${position.y}, z ${position.z} (counted from 0)${doubt}`;
});

byId('back').addEventListener('click', () => go(-1));
byId('forward').addEventListener('click', () => go(1));
byId('slice').addEventListener('input', (event) => { state.at[state.view] = Number(event.target.value); draw(); });
byId('threshold').addEventListener('input', (event) => setStop(Number(event.target.value)));
byId('final').addEventListener('change', (event) => { state.final = event.target.checked; draw(); });
for (const name of ['opacity', 'brightness', 'contrast']) byId(name).addEventListener('input', filters);
byId('zoom').addEventListener('input', draw);
for (const [name] of LAYERS) byId(`show-${name}`).addEventListener('change', draw);
for (const input of document.querySelectorAll('[name=view]')) {
  input.addEventListener('change', () => { state.view = Number(input.value); draw(); });
}
for (const input of document.querySelectorAll('[name=style]')) {
  input.addEventListener('change', () => setStyle(input.value));
}
byId('reset').addEventListener('click', () => {
  Object.assign(state, { stop: data.start, final: data.post_processed });
  for (const [name, shown] of LAYERS) byId(`show-${name}`).checked = shown;
  for (const [name, value] of [['brightness', 100], ['contrast', 100], ['zoom', 1]]) byId(name).value = value;
  setStyle(STYLE);
});
window.addEventListener('resize', draw);

byId('threshold').max = data.stops.length - 1;
byId('final-box').hidden = !data.post_processed;
setStyle(STYLE);
