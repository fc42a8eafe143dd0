// From a raw map to coloured pixels, the same way as the library does it in Python.

const colours = Object.fromEntries(Object.entries(run.cmaps).map(([name, text]) => [name, bytes(text)]));

/** For each of `many` pixels its two neighbouring cells among `few` and the weight of the second: half-pixel centres. */
function neighbours(few, many) {
  const first = new Int32Array(many);
  const second = new Int32Array(many);
  const weight = new Float64Array(many);
  for (let i = 0; i < many; i += 1) {
    const at = Math.min(few - 1, Math.max(0, ((i + 0.5) * few) / many - 0.5));
    first[i] = Math.floor(at);
    second[i] = Math.min(few - 1, first[i] + 1);
    weight[i] = at - first[i];
  }
  return { first, second, weight };
}

const neighbourCache = new Map();

function cachedNeighbours(few, many) {
  const key = `${few}/${many}`;
  if (!neighbourCache.has(key)) neighbourCache.set(key, neighbours(few, many));
  return neighbourCache.get(key);
}

/** The map at `width` × `height` pixels, as a share of its own peak. */
function upsample(map, width, height) {
  const across = cachedNeighbours(map.width, width);
  const down = cachedNeighbours(map.height, height);
  const row = new Float32Array(map.width);
  const out = new Float32Array(width * height);
  for (let y = 0, at = 0; y < height; y += 1) {
    const top = down.first[y] * map.width;
    const bottom = down.second[y] * map.width;
    for (let i = 0; i < map.width; i += 1) {
      row[i] = (map.cells[top + i] + (map.cells[bottom + i] - map.cells[top + i]) * down.weight[y]) / 255;
    }
    for (let x = 0; x < width; x += 1, at += 1) {
      const left = row[across.first[x]];
      out[at] = left + (row[across.second[x]] - left) * across.weight[x];
    }
  }
  return out;
}

const peakCache = new Map();

/** The largest raw value of one image over time, or of the whole layer when `item` is null. */
function commonPeak(view, item) {
  const key = item === null ? `${view.layer}` : `${view.layer}/${view.cls}/${item}`;
  if (!peakCache.has(key)) peakCache.set(key, findPeak(view, item));
  return peakCache.get(key);
}

function findPeak(view, item) {
  const { peaks } = run.maps[view.layer];
  const maps = peaks.filter((frame) => frame);
  if (item === null) return Math.max(0, ...maps.map((frame) => Math.max(...frame)));
  return Math.max(0, ...drawnFrames.map((frame) => mapOf(view, item, frame).peak));
}

/** By what the upsampled share of the peak is multiplied, so that 1 is the top of the chosen scale. */
function gain(view, item, map) {
  if (view.scale === 'map') return 1;
  return map.peak / commonPeak(view, view.scale === 'image' ? item : null);
}

/** Draw the map of `item` over `photo` into `out` (both ImageData). */
function paint(view, item, frame, photo, out) {
  out.data.set(photo.data);
  const map = mapOf(view, item, frame);
  if (!map || !map.peak || !view.heat || !view.alpha) return;
  const values = upsample(map, photo.width, photo.height);
  const factor = gain(view, item, map);
  const lut = colours[view.cmap];
  const { alpha, threshold } = view;
  const keep = 1 - alpha;
  const from = photo.data;
  const to = out.data;
  for (let i = 0, at = 0; i < values.length; i += 1, at += 4) {
    const share = Math.min(1, values[i] * factor);
    if (share < threshold) continue;
    const colour = Math.floor(share * 255 + 0.5) * 3;
    to[at] = Math.floor(keep * from[at] + alpha * lut[colour]);
    to[at + 1] = Math.floor(keep * from[at + 1] + alpha * lut[colour + 1]);
    to[at + 2] = Math.floor(keep * from[at + 2] + alpha * lut[colour + 2]);
  }
}

// Pictures are decoded when they are first needed.

const photos = new Map();
const outlines = new Map();

async function decode(uri, width, height) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  const canvas = make('canvas', { width, height });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(image, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}

/** What a map is drawn over where the image is missing. */
function grey(width, height) {
  const data = new Uint8ClampedArray(width * height * 4).fill(128);
  for (let i = 3; i < data.length; i += 4) data[i] = 255;
  return new ImageData(data, width, height);
}

/** The image as pixels when it is at hand; otherwise null, and `ready` is called once it is. */
function photoOf(item, ready) {
  const entry = run.panel[item];
  const known = photos.get(item);
  if (known && known.data) return known.data;
  if (!known) photos.set(item, { waiting: [], data: null });
  photos.get(item).waiting.push(ready);
  if (!known) load(item, entry);
  return null;
}

async function load(item, entry) {
  const slot = photos.get(item);
  try {
    if (entry.mask) outlines.set(item, outline(await decode(entry.mask, entry.width, entry.height)));
    slot.data = entry.image ? await decode(entry.image, entry.width, entry.height) : grey(entry.width, entry.height);
    slot.waiting.forEach((ready) => ready());
  } finally {
    slot.waiting = [];
  }
}

/** The edges between pixels inside and outside of a mask. */
function outline({ width, height, data }) {
  const path = new Path2D();
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && data[(y * width + x) * 4] > 127;
  for (let y = 0; y <= height; y += 1) {
    for (let x = 0; x <= width; x += 1) {
      const here = inside(x, y);
      if (here !== inside(x - 1, y)) addEdge(path, x, y, x, y + 1);
      if (here !== inside(x, y - 1)) addEdge(path, x, y, x + 1, y);
    }
  }
  return path;
}

function addEdge(path, x0, y0, x1, y1) {
  path.moveTo(x0, y0);
  path.lineTo(x1, y1);
}

function drawOutline(context, item, zoom) {
  const path = outlines.get(item);
  if (!path) return;
  context.save();
  context.scale(zoom, zoom);
  context.lineCap = 'square';
  for (const [colour, width] of [['rgba(0, 0, 0, 0.65)', 3.4], ['#fff', 1.5]]) {
    context.strokeStyle = colour;
    context.lineWidth = width / zoom;
    context.stroke(path);
  }
  context.restore();
}

/** Of a volume, borders between the four slices that are drawn, and the number of each. */
function drawSlices(context, item) {
  const { depth } = run.panel[item];
  if (!depth) return;
  const { width, height } = context.canvas;
  context.save();
  context.fillStyle = '#fff';
  context.fillRect(Math.round(width / 2) - 1, 0, 2, height);
  context.fillRect(0, Math.round(height / 2) - 1, width, 2);
  const size = Math.max(9, Math.round(Math.min(width, height) / 16));
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textAlign = 'right';
  for (let i = 0; i < 4; i += 1) {
    const words = String(Math.floor(((i + 0.5) / 4) * depth) + 1);
    const [x, y] = [((i % 2) + 1) * (width / 2) - 4, (Math.floor(i / 2) + 1) * (height / 2) - 4];
    const wide = context.measureText(words).width;
    context.fillStyle = '#fff';
    context.fillRect(x - wide - 3, y - size, wide + 6, size + 4);
    context.fillStyle = '#3c4149';
    context.fillText(words, x, y);
  }
  context.restore();
}
