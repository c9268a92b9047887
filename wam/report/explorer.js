// Moves along a front: a slider, or a triangle of points; shows scores and completions and marks the place in the figures.
// Runs after page.js, whose figures it uses. All text is set as text, never as HTML.
"use strict";
(() => {
  const MARK = "where the explorer is";
  const explorers = JSON.parse(document.getElementById("explorers").textContent);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const distance = (a, b) => a.reduce((sum, value, i) => sum + (value - b[i]) ** 2, 0);
  const nearest = (positions, weights) => {
    let best = 0;
    positions.forEach((position, i) => {
      if (distance(position.weights, weights) < distance(positions[best].weights, weights) - 1e-12) best = i;
    });
    return best;
  };

  const explore = (root, explorer) => {
    const find = (selector) => root.querySelector(selector);
    const slider = find("input[type=range]");
    const triangle = find(".triangle");
    const select = find("select");
    let path = explorer.paths[0];
    let index = explorer.start;

    const showScores = (position) => {
      root.querySelectorAll("[data-score]").forEach((row, i) => {
        const score = position.scores[i];
        find(`[data-score="${i}"] .value`).textContent = score ? score.text : "–";
        find(`[data-score="${i}"] .half`).textContent = score && score.half ? ` ± ${score.half}` : "";
        const bar = row.querySelector(".bar");
        bar.hidden = !score;
        if (!score) return;
        const [low, middle, high] = score.at.map((share) => 100 * share);
        const whisker = bar.querySelector(".whisker");
        whisker.style.left = `${low}%`;
        whisker.style.width = `${high - low}%`;
        bar.querySelector(".dot").style.left = `${middle}%`;
      });
    };
    const showSamples = (position) => {
      const list = find(".completions");
      list.replaceChildren(...position.samples.map(([prompt, completion]) => {
        const item = make("li");
        item.append(make("p", "prompt", prompt), make("p", "completion", completion === "" ? "(nothing)" : completion));
        return item;
      }));
      find(".no-completions").hidden = position.samples.length > 0;
    };
    const markFigures = (position) => {
      explorer.figures.forEach((id, i) => {
        const { data } = report.figures[id];
        const number = data.findIndex((trace) => trace.meta === MARK);
        const [x, y] = position.places[i] ?? [null, null];
        Object.assign(data[number], { x: [x], y: [y] }); // for the next time the theme changes
        Plotly.restyle(id, { x: [[x]], y: [[y]] }, [number]);
      });
    };
    const show = () => {
      const position = path.positions[index];
      find(".where").textContent = `${path.name}: ${position.label}`;
      showScores(position);
      showSamples(position);
      markFigures(position);
      if (slider) {
        slider.max = path.positions.length - 1;
        slider.value = index;
        slider.setAttribute("aria-valuetext", position.label);
      }
      if (triangle) {
        [...triangle.querySelectorAll("button")].forEach((button, i) => {
          button.setAttribute("aria-checked", String(i === index));
          button.tabIndex = i === index ? 0 : -1;
        });
      }
      root.dataset.position = index;
    };

    // The corners are at the left, the right and the top; y goes down.
    const placed = ({ weights: [left, right, top] }) => [right + top / 2, 1 - top];
    const towards = (key) => ({ ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] })[key];
    const neighbour = (direction) => {
      const [x, y] = placed(path.positions[index]);
      let best = index;
      let least = Infinity;
      path.positions.forEach((position, i) => {
        const [dx, dy] = [placed(position)[0] - x, placed(position)[1] - y];
        const ahead = dx * direction[0] + dy * direction[1];
        const aside = Math.abs(dx * direction[1] + dy * direction[0]);
        if (ahead <= 1e-9 || aside > 2 * ahead) return;
        if (ahead + aside < least) [best, least] = [i, ahead + aside];
      });
      return best;
    };
    const buildTriangle = () => {
      triangle.querySelectorAll("button").forEach((button) => button.remove());
      path.positions.forEach((position, i) => {
        const button = make("button");
        const [x, y] = placed(position);
        button.type = "button";
        button.setAttribute("role", "radio");
        button.setAttribute("aria-label", position.label);
        button.title = position.label;
        button.style.left = `${100 * x}%`;
        button.style.top = `${100 * y}%`;
        button.addEventListener("click", () => { index = i; show(); });
        triangle.append(button);
      });
    };
    if (triangle) {
      buildTriangle();
      triangle.addEventListener("keydown", (event) => {
        const direction = towards(event.key);
        if (!direction) return;
        event.preventDefault();
        index = neighbour(direction);
        show();
        triangle.querySelectorAll("button")[index].focus();
      });
    }
    if (slider) slider.addEventListener("input", () => { index = Number(slider.value); show(); });

    const choose = (number) => {
      const { weights } = path.positions[index];
      path = explorer.paths[number];
      index = nearest(path.positions, weights);
      if (triangle) buildTriangle();
      show();
    };
    if (select) select.addEventListener("change", () => choose(Number(select.value)));
    // A click on a point of a figure goes there.
    explorer.figures.forEach((id, panel) => {
      document.getElementById(id).on("plotly_click", ({ points: [point] }) => {
        explorer.paths.forEach((other, number) => {
          other.positions.forEach((position, i) => {
            const [x, y] = position.places[panel] ?? [];
            if (x !== point.x || y !== point.y) return;
            path = other;
            index = i;
            if (select) select.value = number;
            if (triangle) buildTriangle();
            show();
          });
        });
      });
    });
    show();
  };

  for (const [id, explorer] of Object.entries(explorers)) explore(document.getElementById(id), explorer);
  document.body.dataset.explorers = "true";
})();
