// Browsers start no worker for a page from the disk. There, the worker of the search is a script in a frame of its own.
// The theme's scripts expect the name IFrameWorker, and that the first script in the frame is the worker's.
if (location.protocol === "file:") {
  const load = (frame, source) => new Promise((resolve, reject) => {
    const script = frame.contentDocument.createElement("script");
    Object.assign(script, { src: source, onload: resolve, onerror: () => reject(new Error(`${source} cannot be read`)) });
    frame.contentDocument.head.append(script);
  });

  window.IFrameWorker = class extends EventTarget {
    #frame = document.createElement("iframe");
    #begun;

    constructor(source) {
      super();
      this.#frame.hidden = true;
      this.#frame.srcdoc = "<!doctype html>";
      const opened = new Promise((resolve) => this.#frame.addEventListener("load", resolve, { once: true }));
      document.body.append(this.#frame);
      this.#begun = opened.then(() => this.#begin(source));
    }

    #begin(source) {
      const inside = this.#frame.contentWindow;
      inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      inside.importScripts = async (...sources) => {
        for (const one of sources) await load(this.#frame, one); // each may need those before it
      };
      return load(this.#frame, source);
    }

    postMessage(data) {
      this.#begun.then(() => this.#frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {
      this.#frame.remove();
    }
  };
  window.Worker = window.IFrameWorker;
}
