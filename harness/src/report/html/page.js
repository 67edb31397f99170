'use strict';
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const PAGE = 200;
  const $ = (id) => document.getElementById(id);
  const make = (tag, text, cls) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    if (cls) element.className = cls;
    return element;
  };
  const cells = data.cells.map(([name, outcome, verdict, told, ms, seed]) => {
    const [pairing, guest, machine, engine] = name.split('/');
    return {name, pairing, guest, machine, engine, outcome: data.outcomes[outcome], verdict: data.verdicts[verdict],
            told: data.texts[told], ms, seed};
  });
  const style = {pass: 'good', xfail: 'known', flaky: 'known', fail: 'red', xpass: 'red'};
  const filters = {pairing: '', text: '', verdict: '', outcome: '', guest: '', machine: '', engine: ''};
  let shown = PAGE;
  let picture = null;

  for (const key of ['verdict', 'outcome', 'guest', 'machine', 'engine']) {
    const select = $('by-' + key);
    for (const value of [...new Set(cells.map((cell) => cell[key]))].sort()) select.append(new Option(value, value));
    select.addEventListener('change', () => { filters[key] = select.value; filter(); });
  }
  $('by-text').addEventListener('input', () => { filters.text = $('by-text').value.toLowerCase(); filter(); });
  $('filters').addEventListener('submit', (event) => event.preventDefault());
  $('filters').addEventListener('reset', () => setTimeout(() => {
    for (const key of Object.keys(filters)) filters[key] = '';
    filter();
  }));
  const buttons = [...document.querySelectorAll('.grid button')];
  for (const button of buttons) {
    button.addEventListener('click', () => {
      filters.pairing = filters.pairing === button.dataset.pairing ? '' : button.dataset.pairing;
      filter();
      $('list').scrollIntoView();
    });
    // Arrow keys go from pairing to pairing.
    button.addEventListener('keydown', (event) => {
      const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
      if (!step) return;
      const cell = button.parentElement;
      const row = cell.parentElement;
      const rows = [...row.parentElement.rows];
      const next = rows[rows.indexOf(row) + step[0]]?.cells[cell.cellIndex + step[1]]?.querySelector('button');
      if (next) { next.focus(); event.preventDefault(); }
    });
  }

  function passes(cell) {
    for (const key of ['pairing', 'verdict', 'outcome', 'guest', 'machine', 'engine']) {
      if (filters[key] && cell[key] !== filters[key]) return false;
    }
    return !filters.text || (cell.name + ' ' + cell.told).toLowerCase().includes(filters.text);
  }

  function filter() {
    shown = PAGE;
    for (const button of buttons) button.setAttribute('aria-pressed', String(button.dataset.pairing === filters.pairing));
    list();
  }

  function list() {
    const found = cells.filter(passes);
    const body = $('cells').tBodies[0];
    body.replaceChildren(...found.slice(0, shown).map((cell) => {
      const row = document.createElement('tr');
      const name = make('td');
      const open = make('button', cell.name);
      open.type = 'button';
      open.addEventListener('click', () => { location.hash = cell.name; detail(cell, true); });
      name.append(open);
      const verdict = make('td');
      verdict.append(make('span', cell.verdict, 'tag ' + (style[cell.verdict] || 'none')));
      row.append(name, make('td', cell.outcome), verdict, make('td', cell.told), make('td', cell.ms.toFixed(1)));
      return row;
    }));
    $('count').textContent = `${found.length} of ${cells.length} cells`
      + (filters.pairing ? `, only ${filters.pairing}` : '')
      + (found.length > shown ? `; ${shown} are shown` : '');
    $('more').hidden = found.length <= shown;
  }
  $('more').addEventListener('click', () => { shown += PAGE; list(); });

  function detail(cell, jump) {
    const box = $('detail');
    const known = data.details[cell.name];
    const parts = [make('h2', cell.name), make('p', `${cell.outcome}, ${cell.verdict}: ${cell.told}`)];
    parts[0].tabIndex = -1;
    const command = (cell.outcome.endsWith(' ok') ? 'spinup trace ' : 'spinup repro ') + cell.name + data.repeated
      + (cell.seed ? ' --seed ' + cell.seed : '');
    const run = make('p');
    const copy = make('button', 'copy', 'plain');
    copy.type = 'button';
    copy.addEventListener('click', () => navigator.clipboard?.writeText(command));
    run.append(make('code', command), ' ', copy);
    parts.push(run);
    if (picture) { URL.revokeObjectURL(picture); picture = null; }
    const log = data.logs[cell.name];
    if (log) parts.push(make('h3', 'What is left of it'), text(log));
    if (known) {
      if (known.divergence) {
        parts.push(make('h3', 'Where it parts ways with ' + known.divergence.against), make('p', known.divergence.sentence));
      }
      if (known.diff) parts.push(text(known.diff, true));
      if (known.svg) {
        const frame = make('div', undefined, 'picture');
        const image = make('img');
        picture = URL.createObjectURL(new Blob([known.svg], {type: 'image/svg+xml'}));
        image.src = picture;
        image.alt = 'The events of the cell, a lane for each vCPU and layer'
          + (known.divergence ? '; in red: ' + known.divergence.sentence : '');
        frame.append(image);
        // To where it parts ways.
        const broken = /<circle class="broken" cx="\d+" cy="(\d+)"/.exec(known.svg);
        if (broken) image.addEventListener('load', () => { frame.scrollTop = Number(broken[1]) - 160; });
        frame.tabIndex = 0;
        frame.setAttribute('role', 'group');
        frame.setAttribute('aria-label', 'picture of the trace');
        parts.push(make('h3', 'What happened'), frame);
      }
      if (known.console) parts.push(make('h3', 'Console'), text(known.console));
    } else {
      parts.push(make('p', 'No trace of this cell is embedded: red cells have one, and an example of each expected failure.', 'dim'));
    }
    box.replaceChildren(...parts);
    box.hidden = false;
    if (jump) { parts[0].focus(); box.scrollIntoView(); }
  }

  function text(content, isDiff) {
    const pre = make('pre');
    pre.tabIndex = 0;
    if (!isDiff) { pre.textContent = content; return pre; }
    for (const line of content.split('\n')) {
      const side = /^\s*▶?\s*([−+])\s/.exec(line);
      pre.append(side ? make('span', line, side[1] === '+' ? 'r' : 'l') : line, '\n');
    }
    return pre;
  }

  function fromHash(jump) {
    const cell = cells.find((cell) => cell.name === decodeURIComponent(location.hash.slice(1)));
    if (cell) detail(cell, jump);
  }
  addEventListener('hashchange', () => fromHash(true));
  filter();
  fromHash(false);
})();
