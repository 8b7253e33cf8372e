// The server's events, for as long as the page is open. The browser reconnects by itself and says
// which event it had last; where it gives up (an HTTP error) or the line goes silent, we connect.

const SILENCE_MS = 7000; // the server speaks every 2 s
const LONGEST_WAIT_MS = 8000;

export function follow(url, kinds, take, lost) {
  let source = null;
  let last = "";
  let wait = 500;
  let watchdog = 0;

  function heard() {
    clearTimeout(watchdog);
    watchdog = setTimeout(() => reconnect("nothing heard"), SILENCE_MS);
  }

  function reconnect() {
    source.close();
    clearTimeout(watchdog);
    lost();
    setTimeout(connect, wait);
    wait = Math.min(2 * wait, LONGEST_WAIT_MS);
  }

  function connect() {
    source = new EventSource(last ? `${url}?last=${encodeURIComponent(last)}` : url);
    source.onerror = () => {
      if (source.readyState === EventSource.CLOSED) reconnect();
      else lost();
    };
    for (const kind of kinds) {
      source.addEventListener(kind, (event) => {
        heard();
        wait = 500;
        last = event.lastEventId || last;
        take(kind, JSON.parse(event.data));
      });
    }
    heard();
  }

  connect();
}
