// Findings: a card each, with links to its frame and images.

function inWords(kind) {
  return Object.hasOwn(run.titles, kind) ? run.titles[kind] : kind.charAt(0).toUpperCase() + kind.slice(1).replaceAll('_', ' ');
}

function severityInWords(severity) {
  if (severity >= 0.66) return 'high';
  return severity >= 0.33 ? 'medium' : 'low';
}

function fillFindings() {
  byId('findings-section').hidden = !run.findings;
  if (!run.findings) return;
  const cards = findings.map(findingCard);
  const rest = cards.slice(5);
  byId('findings').replaceChildren(...cards.slice(0, 5));
  if (!cards.length) byId('findings').append(make('p', { className: 'quiet', textContent: 'No finding.' }));
  byId('checked').textContent = run.checked;
  if (rest.length) byId('findings').append(make('details', {}, make('summary', { textContent: `${rest.length} more` }), ...rest));
}

function findingCard(finding, i) {
  const frame = run.frames.findIndex((one) => one.frame === finding.frame);
  const layer = run.layers.indexOf(finding.layer);
  const there = { ...(frame >= 0 && { frame }), ...(layer >= 0 && { layer }) };
  const links = make('p', { className: 'links' });
  if (finding.items.length) links.append(link('show only these', `Show only the images of finding ${i + 1}`, () => jump({ ...there, finding: String(i) })));
  if (frame >= 0) links.append(link(`frame ${finding.frame}`, `Go to frame ${finding.frame}`, () => jump(there)));
  links.append(...finding.items.slice(0, 6).map((item) => itemLink(item, there)));
  if (finding.items.length > 6) links.append(make('span', { className: 'quiet', textContent: `and ${finding.items.length - 6} more` }));
  const heading = make('h3', {}, inWords(finding.kind));
  heading.append(make('span', { className: 'severity', textContent: `severity ${severityInWords(finding.severity)}` }));
  const text = make('p', { dir: 'auto', textContent: finding.text });
  const tried = finding.tried ? triedParts(finding.tried) : [];
  return make('article', { className: 'finding', attributes: { 'data-severity': severityInWords(finding.severity) } }, heading, text, ...tried, links);
}

/** How many images changed beside the control, since when, the patches, and images before and after. */
function triedParts({ bars, interval, figures, since }) {
  const parts = bars.map(([name, share], i) => bar(name, share, i));
  parts.push(make('p', { className: 'quiet', textContent: `95% interval of the difference: ${interval.map(percent).join(' to ')}` }));
  const frame = run.frames.findIndex((one) => one.frame === since);
  if (frame >= 0) parts.push(make('p', {}, 'First seen in ', link(`frame ${since}, ${frameTitle(frame)}`, '', () => jump({ frame })), '.'));
  parts.push(...figures.map(({ image, width, height, words }) => make(
    'figure',
    { className: 'evidence' },
    make('img', { src: image, width, height, alt: '' }),
    make('figcaption', { className: 'quiet small', textContent: words, dir: 'auto' }),
  )));
  return parts;
}

function bar(name, share, i) {
  const length = make('i', { className: `line-${i}` });
  length.style.width = percent(share || 0);
  return make('p', { className: 'bar' }, make('span', { textContent: name }), make('span', { className: 'rail', attributes: { 'aria-hidden': 'true' } }, length), make('b', { textContent: percent(share) }));
}

function link(text, title, act) {
  const button = make('button', { type: 'button', className: 'link', textContent: text, title });
  button.addEventListener('click', act);
  return button;
}

function itemLink(item, there) {
  const { label, name: file, image, width, height } = run.panel[item];
  const button = link('', label || file, () => jump({ ...there, item }));
  button.className = 'thumb';
  button.setAttribute('aria-label', `Enlarge ${inSpeech(item)}`);
  if (image) button.append(make('img', { src: image, alt: '', width, height }));
  else button.append(String(item + 1));
  return button;
}

function jump(patch) {
  pause();
  change(patch);
  if (state.item === null) bringIntoSight();
}

/** On a phone the images are far from what leads to them. */
function bringIntoSight() {
  const { top, bottom } = byId('panel').getBoundingClientRect();
  const bar = document.querySelector('.transport').offsetHeight;
  if (Math.min(bottom, innerHeight) - Math.max(top, bar) >= Math.min(160, bottom - top)) return;
  const from = document.querySelector('.count').getBoundingClientRect().top;
  scrollBy({ top: from - bar - 8 });
}
