// A canvas on which a mask is painted pixel by pixel. `props.value` is
// {image: data URL or null, side, channels, mask}: a digit per pixel, whose bit k
// says that channel k is to be generated. See page.py.
let drag = null; // while the pointer is down: the digit that is painted
let last = null; // the pixel that it was at
let mask = [];

const canvas = () => element.querySelector('canvas');
const tool = (name) => element.querySelector(`[name=${name}]`);
const every = () => 2 ** props.value.channels - 1;

function show() {
  const { image, side } = props.value;
  const cell = Math.max(1, Math.floor(480 / side));
  const board = canvas(), pen = board.getContext('2d');
  board.width = board.height = side * cell;
  pen.imageSmoothingEnabled = false;
  const paint = () => {
    mask.forEach((digit, i) => {
      if (!digit) return;
      // The colour of the channels that stay is left out of the veil.
      const part = (k) => (digit === every() ? [255, 64, 129][k]
        : (digit >> k) & 1 ? 255 : 0);
      pen.fillStyle = `rgba(${part(0)}, ${part(1)}, ${part(2)}, 0.6)`;
      pen.fillRect((i % side) * cell, Math.floor(i / side) * cell, cell, cell);
    });
    if (cell < 8) return;
    pen.strokeStyle = 'rgba(128, 128, 128, 0.4)';
    pen.beginPath();
    for (let i = 0; i <= side; i++) {
      pen.moveTo(i * cell, 0); pen.lineTo(i * cell, side * cell);
      pen.moveTo(0, i * cell); pen.lineTo(side * cell, i * cell);
    }
    pen.stroke();
  };
  if (!image) {
    pen.fillStyle = '#808080';
    pen.fillRect(0, 0, board.width, board.height);
    return paint();
  }
  const picture = new Image();
  picture.onload = () => {
    pen.drawImage(picture, 0, 0, board.width, board.height);
    paint();
  };
  picture.src = image;
}

function load() {
  mask = Array.from(props.value.mask, Number);
  show();
}

function dab(row, column) {
  const { side } = props.value, brush = Number(tool('brush').value);
  const low = Math.floor((brush - 1) / 2);
  for (let r = row - low; r < row - low + brush; r++)
    for (let c = column - low; c < column - low + brush; c++)
      if (r >= 0 && r < side && c >= 0 && c < side) mask[r * side + c] = drag;
}

// Paints from the pixel where the pointer was to that where it is: a quick
// pointer skips pixels.
function stroke(event) {
  const { side } = props.value, box = canvas().getBoundingClientRect();
  const at = (x, from, size) => Math.floor(((x - from) / size) * side);
  const now = [at(event.clientY, box.top, box.height),
    at(event.clientX, box.left, box.width)];
  const [from, to] = [last ?? now, now];
  const steps = Math.max(1, ...to.map((x, i) => Math.abs(x - from[i])));
  for (let i = 0; i <= steps; i++)
    dab(...to.map((x, k) => Math.round(from[k] + ((x - from[k]) * i) / steps)));
  last = now;
  show();
}

element.addEventListener('pointerdown', (event) => {
  if (event.target !== canvas() || !props.value.image) return;
  event.preventDefault();
  canvas().setPointerCapture(event.pointerId);
  drag = tool('erase').checked ? 0 : every();
  last = null;
  stroke(event);
});
element.addEventListener('pointermove', (event) => {
  if (drag !== null) stroke(event);
});
for (const name of ['pointerup', 'pointercancel'])
  element.addEventListener(name, () => {
    if (drag === null) return;
    drag = null;
    props.value = { ...props.value, mask: mask.join('') };
    trigger('input');
  });
watch('value', load);
load();
