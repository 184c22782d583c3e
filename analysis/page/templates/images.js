"use strict";
// The table of all rows, the gallery of those that its filters leave, and the dialog that shows one.
(() => {
  const { runs, fields, rows, sheets } = JSON.parse(document.getElementById("data").textContent);
  const { button, withCopy } = window.brittle;
  const at = Object.fromEntries(fields.map((name, place) => [name, place]));
  const MORE = 24;

  const escaped = (text) => String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
  const words = (status) => status.replace("_", " ");
  const counted = (number) => (number === null ? "–" : number.toLocaleString("en"));
  const rounded = (number) => {
    if (typeof number !== "number") return number ?? "–";
    const text = number.toPrecision(3);
    return text.includes("e") ? String(Number(text)) : text;
  };
  const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(1)} %`);
  const title = (row) => `image ${row[at.image_id]}, ${runs[row[0]].title}`;

  /* A thumbnail: a window on its sheet. */
  const thumb = (sheet, number, label) => {
    if (number === null) return `<span class="thumb none">no picture</span>`;
    const [columns, lines] = sheets[sheet];
    const share = (place, count) => (count > 1 ? (100 * place) / (count - 1) : 0);
    const x = share(number % columns, columns), y = share(Math.floor(number / columns), lines);
    return `<span class="thumb ${sheet}" role="img" aria-label="${label}" style="background-position: ${x.toFixed(4)}% ${y.toFixed(4)}%"></span>`;
  };
  const triple = (row) => [
    ["image", row[at.clean], "clean image", `${counted(row[at.clean_prediction])} · ${percent(row[at.clean_confidence])}`],
    ["change", row[at.change], "its perturbation", `L0 ${counted(row[at.l0])} · L∞ ${rounded(row[at.linf])}`],
    ["image", row[at.adversarial], "adversarial image", `${counted(row[at.adversarial_prediction])} · ${percent(row[at.adversarial_confidence])}`],
  ].map(([sheet, number, label, text]) => `<span>${thumb(sheet, number, label)}<small>${text}</small></span>`).join("");

  /* The table. */
  const number = (name, heading, show = counted) => ({ name, heading, show, numeric: true });
  const choice = (name, heading, show = counted) => ({ name, heading, show, choice: true });
  const columns = [
    number("image_id", "Image", String),
    choice("run", "Attack", (run) => runs[run].title),
    choice("status", "Status", words),
    choice("label", "Label"),
    choice("target", "Target"),
    choice("adversarial_prediction", "Prediction"),
    number("adversarial_confidence", "Confidence", rounded),
    number("l0", "L0"),
    number("l2", "L2", rounded),
    number("linf", "L∞", rounded),
    number("queries", "Queries"),
    number("seconds", "Seconds", rounded),
  ];
  const isText = (column) => column.name === "run" || column.name === "status";

  const cell = (column) => (value, kind, row, { row: place }) => {
    if (kind === "sort" || kind === "type") return isText(column) ? column.show(value) : value;
    const text = escaped(column.show(value));
    if (kind !== "display") return text;
    if (column.name === "status") return `<span class="status ${value}">${text}</span>`;
    if (column.name !== "image_id") return text;
    const small = row[at.adversarial] === null ? "" : thumb("image", row[at.adversarial], "").replace('role="img" aria-label=""', 'aria-hidden="true"');
    return `<button type="button" class="open" aria-label="Open ${escaped(title(row))}" data-row="${place}">${small}${text}</button>`;
  };

  /* What a filter of a number takes: 5, <0.3, ≥100, 1–20; null where it is none of these. */
  const condition = (text) => {
    const NUMBER = "(\\d*\\.?\\d+(?:e[+-]?\\d+)?)";
    const range = text.match(new RegExp(`^${NUMBER}\\s*(?:–|-|\\.\\.)\\s*${NUMBER}$`, "i"));
    if (range) return (value) => value >= Number(range[1]) && value <= Number(range[2]);
    const bound = text.match(new RegExp(`^(<=|>=|[<>≤≥=]?)\\s*${NUMBER}$`, "i"));
    if (!bound) return null;
    const limit = Number(bound[2]);
    return {
      "<": (value) => value < limit, ">": (value) => value > limit,
      "<=": (value) => value <= limit, "≤": (value) => value <= limit,
      ">=": (value) => value >= limit, "≥": (value) => value >= limit,
    }[bound[1]] ?? ((value) => value === limit);
  };

  const filter = (column, place) => {
    const control = document.createElement(column.choice ? "select" : "input");
    control.setAttribute("aria-label", `Filter ${column.heading}`);
    if (column.choice) {
      const values = [...new Set(rows.map((row) => row[at[column.name]]))];
      values.sort((a, b) => (typeof a === "string" ? 0 : a - b));
      control.append(new Option("all", "all"), ...values.map((value) => new Option(column.show(value), JSON.stringify(value))));
      control.addEventListener("change", () => {
        const wanted = control.value === "all" ? undefined : JSON.parse(control.value);
        narrow(place, wanted === undefined ? null : (value) => value === wanted);
      });
    } else {
      control.type = "text";
      control.size = 5;
      control.autocomplete = "off";
      control.spellcheck = false;
      control.setAttribute("aria-describedby", "filter-help");
      control.addEventListener("input", () => {
        const text = control.value.trim(), test = text ? condition(text) : null;
        control.setAttribute("aria-invalid", String(Boolean(text) && !test));
        narrow(place, test && ((value) => value !== null && test(value)));
      });
    }
    return control;
  };

  const element = document.createElement("table");
  element.id = "rows";
  element.innerHTML = `<caption class="unseen">All rows; each opens its image</caption><thead><tr>${columns.map((column) => `<th scope="col">${column.heading}</th>`).join("")}</tr><tr class="filters">${"<td></td>".repeat(columns.length)}</tr></thead>`;
  document.getElementById("explorer").hidden = false;
  document.getElementById("first-images").hidden = true;
  document.getElementById("listing").append(element);

  let table = null;
  const tests = columns.map(() => null);
  const narrow = (place, test) => {
    tests[place] = test;
    table.draw();
  };
  table = new window.DataTable(element, {
    data: rows,
    columns: columns.map((column) => ({
      data: at[column.name],
      render: cell(column),
      type: isText(column) ? "string" : "num",
      className: isText(column) ? "" : "n",
    })),
    autoWidth: false,
    caption: null,
    deferRender: true,
    order: [],
    orderMulti: true,
    pageLength: 15,
    lengthMenu: [15, 50, 200],
    titleRow: 0,
    layout: { topStart: "info", topEnd: "search", bottomStart: "pageLength", bottomEnd: "paging" },
    language: {
      search: "Search",
      info: "_TOTAL_ rows",
      infoEmpty: "0 rows",
      infoFiltered: "of _MAX_",
      lengthMenu: "_MENU_ a page",
      emptyTable: "no rows",
      zeroRecords: "no row is left by the filters",
      paginate: { first: "First", last: "Last", next: "Next", previous: "Previous" },
    },
    createdRow: (line, _, place) => { line.dataset.row = place; },
  });
  table.search.fixed("columns", (_, row) => columns.every((column, place) => !tests[place] || tests[place](row[at[column.name]])));
  const controls = columns.map((column, place) => {
    const control = filter(column, place);
    element.querySelector(".filters").cells[place].replaceChildren(control);
    return control;
  });
  const scroll = document.createElement("div");
  scroll.className = "scroll";
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", "All rows");
  element.replaceWith(scroll);
  scroll.append(element);

  const save = button("CSV", "Save the rows that the filters leave as CSV", () => {
    const quoted = (value) => (value === null ? "" : /[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
    const names = fields.slice(1, -3);
    const lines = order().map((place) => [runs[rows[place][0]].name, ...rows[place].slice(1, -3)].map(quoted).join(","));
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([[["run", ...names].join(","), ...lines].join("\n"), "\n"], { type: "text/csv" }));
    link.download = "rows.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });
  const clear = button("Clear filters", "Clear all filters", () => {
    controls.forEach((control) => { control.value = control.options ? "all" : ""; control.setAttribute("aria-invalid", "false"); });
    tests.fill(null);
    table.search("").draw();
  });
  const actions = document.createElement("span");
  actions.className = "actions";
  actions.append(clear, save);
  document.querySelector("#listing .dt-info").after(actions);

  /* The rows that the filters leave, in the table's order. */
  const order = () => table.rows({ search: "applied", order: "applied" }).indexes().toArray();

  /* The gallery. */
  const gallery = document.getElementById("gallery"), more = document.getElementById("more");
  let shown = MORE;
  const card = (place) => {
    const row = rows[place];
    const target = row[at.target] === null ? "" : `, target ${row[at.target]}`;
    return `<figure><button type="button" class="three" data-row="${place}" aria-label="Open ${escaped(title(row))}">${triple(row)}</button>`
      + `<figcaption class="${row[at.status]}">${words(row[at.status])} <span class="quiet">image ${row[at.image_id]}, label ${row[at.label]}${target}, ${escaped(runs[row[0]].title)}</span></figcaption></figure>`;
  };
  const fill = () => {
    const pictured = order().filter((place) => rows[place][at.clean] !== null);
    gallery.innerHTML = pictured.slice(0, shown).map(card).join("");
    more.hidden = pictured.length <= shown;
    document.getElementById("gallery-count").textContent = `${counted(Math.min(shown, pictured.length))} of ${counted(pictured.length)} with pictures`;
  };
  let filled = "";
  const refill = () => {
    const left = order().join();
    if (left === filled) return; // another page of the same rows
    filled = left;
    shown = MORE;
    fill();
  };
  table.on("draw", refill);
  refill();
  more.addEventListener("click", () => {
    const first = shown;
    shown += MORE;
    fill();
    gallery.children[first]?.querySelector("button").focus();
  });

  /* The dialog. */
  const dialog = document.getElementById("image");
  dialog.innerHTML = `<p class="unseen" role="status"></p><div></div>`;
  const [spoken, content] = dialog.children;
  let current = 0, places = [], opener = null;
  const NAMES = { l0: "L0, pixels", l0_features: "L0, channel values", l1: "L1", l2: "L2", linf: "L∞", seconds: "seconds, its share" };
  const SHOWN = { status: words, clean_confidence: percent, adversarial_confidence: percent, l1: rounded, l2: rounded, linf: rounded, seconds: rounded, l0: counted, l0_features: counted, queries: counted, gradients: counted, generations: counted };
  const values = (row) => fields.slice(1, -3).filter((name) => row[at[name]] !== null).map((name) => {
    const text = (SHOWN[name] ?? String)(row[at[name]]);
    return `<div><dt>${NAMES[name] ?? name.replaceAll("_", " ")}</dt><dd>${escaped(text)}</dd></div>`;
  }).join("");
  const quoted = (text) => (/^[\w./:-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`);
  const command = (row) => {
    const run = runs[row[0]];
    if (!run.again) return "";
    const target = row[at.target] === null ? "" : ` --target ${row[at.target]}`;
    return `${run.again} --ids ${row[at.image_id]}${target} --out ${quoted(`${run.name.replaceAll("/", "-")}-${row[at.image_id]}`)}`;
  };
  const show = (place) => {
    current = place;
    const row = rows[place], position = places.indexOf(place), again = command(row);
    spoken.textContent = `${title(row)}, ${words(row[at.status])}, ${position + 1} of ${places.length}`;
    content.innerHTML = `<header><h2 id="image-title" tabindex="-1">Image ${row[at.image_id]} <span>${escaped(runs[row[0]].title)}</span></h2><p class="status ${row[at.status]}">${words(row[at.status])} <span class="quiet">${position + 1} of ${counted(places.length)}</span></p></header>`
      + `<div class="three">${triple(row)}</div><dl>${values(row)}</dl>`
      + (again ? `<p class="quiet">Search it again:</p><div class="typed"><code>${again.split(" ").map((word) => `<span>${escaped(word)}</span>`).join(" ")}</code></div>` : "")
      + `<footer></footer>`;
    const step = (by, text, label) => {
      const made = button(text, label, () => turn(by));
      made.disabled = places[position + by] === undefined;
      return made;
    };
    const close = button("Close", "Close", () => dialog.close());
    const find = button("Show in table", "Show this row in the table", () => { opener = null; dialog.close(); reveal(current); });
    find.hidden = !order().includes(place);
    dialog.querySelector("footer").append(step(-1, "← Previous", "Previous image"), step(1, "Next →", "Next image"), find, close);
    const typed = dialog.querySelector(".typed");
    if (typed) withCopy(typed);
  };
  const turn = (by) => {
    const next = places[places.indexOf(current) + by];
    if (next === undefined) return;
    const label = document.activeElement?.getAttribute("aria-label");
    show(next);
    const same = [...dialog.querySelectorAll("button")].find((made) => made.getAttribute("aria-label") === label && !made.disabled);
    (same ?? dialog.querySelector("h2")).focus();
  };
  const open = (place) => {
    opener = document.activeElement;
    places = order();
    if (!places.includes(place)) places = rows.map((_, any) => any);
    show(place);
    dialog.showModal();
    dialog.querySelector("h2").focus();
  };
  const reveal = (place) => {
    const page = Math.floor(order().indexOf(place) / table.page.len());
    table.page(page).draw("page");
    const line = element.querySelector(`tr[data-row="${place}"]`);
    line?.querySelector("button").focus();
    line?.scrollIntoView({ block: "center" });
  };
  dialog.addEventListener("close", () => {
    if (opener?.isConnected && opener !== document.body) opener.focus();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    turn(by);
  });

  /* The mark at the pointer, or the nearest one about it: marks are small. */
  const NEAR = 8;
  const known = new WeakMap();
  const placed = (svg) => {
    if (!known.has(svg)) {
      known.set(svg, [...svg.querySelectorAll("[data-row]")].map((mark) => {
        if (mark.hasAttribute("x")) return { mark, x: Number(mark.getAttribute("x")), y: Number(mark.getAttribute("y")) };
        const box = mark.getBBox();
        return { mark, x: box.x + box.width / 2, y: box.y + box.height / 2 };
      }));
    }
    return known.get(svg);
  };
  const markAt = (event) => {
    const direct = event.target.closest(".drawing [data-row]"), svg = event.target.closest(".drawing svg");
    if (direct || !svg) return direct;
    const onScreen = svg.getScreenCTM(), point = new DOMPoint(event.clientX, event.clientY).matrixTransform(onScreen.inverse());
    let found = null, least = NEAR / onScreen.a;
    placed(svg).forEach(({ mark, x, y }) => {
      const distance = Math.hypot(x - point.x, y - point.y);
      if (distance < least) [found, least] = [mark, distance];
    });
    return found;
  };

  /* Whatever stands for a row opens it: a line of the table, a card, a mark of a figure. */
  document.addEventListener("click", (event) => {
    const mark = markAt(event) ?? event.target.closest("[data-row]");
    if (!mark || (mark.tagName === "TR" && getSelection().toString())) return; // text was selected in a line
    open(Number(mark.dataset.row));
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-run]");
    if (!link) return;
    event.preventDefault();
    const place = columns.findIndex((column) => column.name === "run");
    controls[place].value = link.dataset.run;
    controls[place].dispatchEvent(new Event("change"));
    const heading = document.getElementById("images");
    heading.tabIndex = -1;
    heading.focus();
  });

  /* What a mark of a figure stands for, beside the pointer. */
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true");
  document.body.append(tip);
  let marked = null;
  document.addEventListener("pointermove", (event) => {
    const mark = markAt(event);
    if (mark === marked) return;
    marked?.classList.remove("marked");
    mark?.classList.add("marked");
    marked?.ownerSVGElement.classList.remove("pointing");
    mark?.ownerSVGElement.classList.add("pointing");
    marked = mark;
    tip.hidden = !mark;
    if (!mark) return;
    const row = rows[Number(mark.dataset.row)];
    tip.innerHTML = `${row[at.clean] === null ? "" : `<div class="three">${triple(row)}</div>`}<p>${escaped(title(row))}</p>`;
    const box = mark.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(box.right + 8, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${Math.max(8, Math.min(box.bottom + 8, innerHeight - tip.offsetHeight - 8))}px`;
  });

  document.documentElement.dataset.ready = "true";
})();
