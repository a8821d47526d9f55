// Values under the pointer, and images to keep. Tiles are HTML that Python
// makes anew (views.py), so the page listens for all of them at once.
(() => {
  const note = document.createElement('div');
  note.className = 'pointed';
  note.hidden = true;

  // The shades of an image as the browser has it, kept while it is pointed at.
  const seen = new WeakMap();
  function shades(image) {
    if (!seen.has(image)) {
      const board = document.createElement('canvas');
      board.width = image.naturalWidth;
      board.height = image.naturalHeight;
      const pen = board.getContext('2d', { willReadFrequently: true });
      pen.drawImage(image, 0, 0);
      seen.set(image, pen);
    }
    return seen.get(image);
  }

  function said(image, x, y) {
    const box = image.getBoundingClientRect();
    const at = (where, from, size, n) =>
      Math.min(n - 1, Math.max(0, Math.floor(((where - from) / size) * n)));
    const { numbers, unit, values } = image.dataset;
    if (numbers) { // rows of numbers, or of a number for each channel
      const rows = JSON.parse(numbers);
      const row = at(y, box.top, box.height, rows.length);
      const column = at(x, box.left, box.width, rows[0].length);
      const place = rows.length > 1 ? `row ${row}, column ${column}`
        : `step ${column}`;
      return `${place}: ${[].concat(rows[row][column]).join(', ')} ${unit}`;
    }
    if (!values) return '';
    const row = at(y, box.top, box.height, image.naturalHeight);
    const column = at(x, box.left, box.width, image.naturalWidth);
    const top = Number(values) - 1;
    const [r, g, b] = shades(image).getImageData(column, row, 1, 1).data;
    const found = [r, g, b].map((v) => Math.round((v / 255) * top));
    const grey = found[0] === found[1] && found[1] === found[2];
    return `row ${row}, column ${column}: `
      + (grey ? found[0] : found.join(', '));
  }

  function point(event) {
    const image = event.target.closest?.('.tiles img');
    const text = image && image.complete
      ? said(image, event.clientX, event.clientY) : '';
    note.hidden = !text;
    if (!text) return;
    if (!note.isConnected) document.body.append(note);
    note.textContent = text;
    const left = Math.min(event.clientX + 14,
      document.documentElement.clientWidth - note.offsetWidth - 4);
    note.style.left = `${Math.max(4, left)}px`;
    note.style.top = `${event.clientY + 18}px`;
  }
  document.addEventListener('pointermove', point);
  document.addEventListener('pointerdown', point);

  // Where columns are below each other, what a job shows is out of sight.
  document.addEventListener('click', (event) => {
    const tab = event.target.closest?.('button.go')?.closest('.tabitem');
    const result = tab?.querySelector('.result');
    if (result && result.getBoundingClientRect().top > innerHeight - 200) {
      result.scrollIntoView({ behavior: 'smooth' });
    }
  });

  document.addEventListener('click', (event) => {
    const button = event.target.closest?.('.tiles .save');
    if (!button) return;
    const image = button.closest('figure').querySelector('img');
    const link = document.createElement('a');
    link.href = image.src;
    const ending = image.src.startsWith('data:image/gif') ? 'gif' : 'png';
    const name = image.alt.replace(/[^\p{L}\p{N}]+/gu, '_').slice(0, 40);
    link.download = `${name || 'image'}.${ending}`;
    link.click();
  });
})();
