//! The program inside every test image: says when it started, listened and stopped.
//!
//! Standard library only, linked statically, so that an image is this file and nothing else.
//! A stamp is one line, `<event> <unix-ms> <version> [arguments]`, on stdout and, if `STAMP_FILE` is set, appended to that file.
//!
//! Environment: `WS_VERSION` (what it answers to every connection), `PORT` (default 8000), `STAMP_FILE`; and to misbehave:
//! `EXIT_AFTER_MS=n` (exit 1 after n ms), `LISTEN_AFTER_MS=n` (a slow start), `IGNORE_TERM=1`, `UNHEALTHY=1` (`stamp health` fails).
//! `stamp health` probes the program's own port and exits 0 or 1, for a HEALTHCHECK.

use std::env;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::exit;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const SIGTERM: i32 = 15;
/// A probe of our own loopback port answers at once or not at all.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);

static TERMINATED: AtomicBool = AtomicBool::new(false);
static WAKER: AtomicI32 = AtomicI32::new(-1);

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn write(file: i32, bytes: *const u8, count: usize) -> isize;
}

/// Only what is allowed in a signal handler: two atomics and a write.
extern "C" fn on_terminate(_: i32) {
    TERMINATED.store(true, Ordering::SeqCst);
    let waker = WAKER.load(Ordering::SeqCst);
    if waker >= 0 {
        unsafe { write(waker, b"t".as_ptr(), 1) };
    }
}

fn main() {
    // First of all: as process 1 of a container we would never see a SIGTERM that has no handler yet.
    unsafe { signal(SIGTERM, on_terminate) };
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "health") {
        exit(health());
    }

    let (waker, mut wakened) = UnixStream::pair().expect("a fresh process can open a socket pair");
    WAKER.store(waker.as_raw_fd(), Ordering::SeqCst);
    stamp("start", &arguments.join(" "));
    if let Some(delay) = milliseconds("EXIT_AFTER_MS") {
        thread::spawn(move || {
            thread::sleep(delay);
            stamp("exit", "");
            exit(1);
        });
    }
    thread::spawn(serve);

    let ignore = flag("IGNORE_TERM");
    let mut byte = [0];
    loop {
        // The flag is looked at first: a SIGTERM may have come before there was anybody to wake.
        if TERMINATED.swap(false, Ordering::SeqCst) && !ignore {
            stamp("stop", "");
            exit(0);
        }
        // An interrupted read is retried by `read_exact`, and the handler has written a byte by then.
        let _ = wakened.read_exact(&mut byte);
    }
}

fn serve() {
    if let Some(delay) = milliseconds("LISTEN_AFTER_MS") {
        thread::sleep(delay);
    }
    let listener = match TcpListener::bind(("0.0.0.0", port())) {
        Ok(listener) => listener,
        Err(error) => {
            stamp(
                "failed",
                &format!("cannot listen on port {}: {error}", port()),
            );
            exit(1);
        }
    };
    stamp("listen", "");
    for connection in listener.incoming().flatten() {
        // Whoever hangs up early is no concern of ours.
        let _ = (&connection).write_all(format!("{}\n", version()).as_bytes());
    }
}

fn health() -> i32 {
    if flag("UNHEALTHY") {
        return 1;
    }
    let answer = TcpStream::connect_timeout(&([127, 0, 0, 1], port()).into(), HEALTH_TIMEOUT)
        .and_then(|mut stream| {
            stream.set_read_timeout(Some(HEALTH_TIMEOUT))?;
            stream.read_exact(&mut [0])
        });
    i32::from(answer.is_err())
}

fn stamp(event: &str, more: &str) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970")
        .as_millis();
    let line = format!("{} {more}", [event, &now.to_string(), &version()].join(" "));
    let line = format!("{}\n", line.trim_end());
    // A full disk or closed pipe must not change how the program behaves under test.
    let _ = io::stdout()
        .write_all(line.as_bytes())
        .and_then(|()| io::stdout().flush());
    if let Ok(path) = env::var("STAMP_FILE") {
        let _ = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
    }
}

fn version() -> String {
    env::var("WS_VERSION").unwrap_or_else(|_| "unknown".to_owned())
}

fn port() -> u16 {
    env::var("PORT")
        .ok()
        .and_then(|port| port.parse().ok())
        .unwrap_or(8000)
}

fn flag(name: &str) -> bool {
    env::var(name).is_ok_and(|value| value == "1")
}

fn milliseconds(name: &str) -> Option<Duration> {
    env::var(name).ok()?.parse().ok().map(Duration::from_millis)
}
