//! The program inside every test image: says when it started, listened and stopped.
//!
//! Standard library only, linked statically, so that an image is this file and nothing else.
//! A stamp is one line, `<event> <unix-ms> <version> [arguments]`, on stdout and, if `STAMP_FILE` is set, appended to that file.
//!
//! Environment: `WS_VERSION` (what it answers to every connection), `PORT` (default 8000), `STAMP_FILE`; and to misbehave:
//! `EXIT_AFTER_MS=n` (exit 1 after n ms), `LISTEN_AFTER_MS=n` (a slow start), `IGNORE_TERM=1`, `UNHEALTHY=1` (`stamp health` fails).
//! `stamp health` probes the program's own port and exits 0 or 1, for a HEALTHCHECK.
//! `stamp call <name>` calls whoever has that name, on `PORT`, again and again until it is told to stop. It stamps `answered` when
//! the first call was, and in the end what became of them all: `called <unix-ms> <version> <key>=<value>…`, see [`Calls`].
//! `stamp forward <port or path> <socket>` accepts connections there and forwards each to a Unix socket, as a proxy before an engine.

use std::env;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::exit;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

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

    if let [first, name] = arguments.as_slice()
        && first == "call"
    {
        stamp("start", &arguments.join(" "));
        call_until_told(name);
        exit(0);
    }

    if let [first, from, to] = arguments.as_slice()
        && first == "forward"
    {
        let (from, to) = (from.clone(), to.clone());
        thread::spawn(move || forward_all(&from, &to));
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
    if flag("EXIT_WITH_ADDRESS") {
        thread::spawn(|| {
            // The routes of this network namespace; without an interface there is none.
            let routes = || std::fs::read_to_string("/proc/net/route").unwrap_or_default();
            while routes().lines().count() > 1 {
                thread::sleep(Duration::from_millis(5));
            }
            stamp("exit", "");
            exit(1);
        });
    }

    let ignore = flag("IGNORE_TERM");
    let mut byte = [0];
    loop {
        // The flag is looked at first: a SIGTERM may have come before there was anybody to wake.
        if TERMINATED.swap(false, Ordering::SeqCst) && !ignore {
            stamp("stop", "");
            // As a database that writes everything out.
            if let Some(delay) = milliseconds("STOP_AFTER_MS") {
                thread::sleep(delay);
            }
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

/// Ends with the program.
fn forward_all(from: &str, to: &str) {
    match from.parse::<u16>() {
        Ok(port) => {
            let listener = TcpListener::bind(("0.0.0.0", port)).expect("the port is free");
            for stream in listener.incoming().flatten() {
                let copy = stream.try_clone().expect("a socket can be cloned");
                forward(stream, copy, to);
            }
        }
        Err(_) => {
            let listener = UnixListener::bind(from).expect("the path is free");
            for stream in listener.incoming().flatten() {
                let copy = stream.try_clone().expect("a socket can be cloned");
                forward(stream, copy, to);
            }
        }
    }
}

/// Both ways, each until its end.
fn forward<S: Read + Write + Send + 'static>(mut reading: S, mut writing: S, to: &str) {
    let Ok(mut engine) = UnixStream::connect(to) else {
        return;
    };
    let mut answers = engine.try_clone().expect("a socket can be cloned");
    thread::spawn(move || {
        let _ = io::copy(&mut reading, &mut engine);
        let _ = engine.shutdown(Shutdown::Write);
    });
    thread::spawn(move || {
        let _ = io::copy(&mut answers, &mut writing);
    });
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

/// What became of the calls. A call resolves the name and tries each address in the order in which they were given, as the
/// usual libraries do. The next one does not wait for it, as other people's would not.
#[derive(Default)]
struct Calls {
    calls: u32,
    /// Calls that nobody answered at any address.
    failed: u32,
    /// Addresses that did not answer, although another one did.
    passed_over: u32,
    /// Calls that took longer than [`SLOW`].
    slow: u32,
    /// The longest call.
    longest: Duration,
    /// The longest time in which no call was answered.
    silent: Duration,
    last_answer: Option<Instant>,
    /// Versions in the order in which they answered, and how many calls in a row.
    versions: Vec<(String, u32)>,
    first_failure: String,
}

impl Calls {
    fn note(&mut self, began: Instant, (result, passed_over): (Result<String, String>, u32)) {
        let now = Instant::now();
        let took = now - began;
        self.calls += 1;
        self.passed_over += passed_over;
        self.slow += u32::from(took > SLOW);
        self.longest = self.longest.max(took);
        match result {
            Ok(version) => {
                let last = self.last_answer.replace(now).unwrap_or(now);
                // In the end there are only those left that take long.
                if !TERMINATED.load(Ordering::SeqCst) {
                    self.silent = self.silent.max(now - last);
                }
                match self.versions.last_mut() {
                    Some((last, count)) if *last == version => *count += 1,
                    last => {
                        if last.is_none() {
                            stamp("answered", &version);
                        }
                        self.versions.push((version, 1));
                    }
                }
            }
            Err(error) => {
                self.failed += 1;
                if self.first_failure.is_empty() {
                    self.first_failure = error.replace(' ', "-");
                }
            }
        }
    }
}

/// Beyond what any container on this machine needs to answer; an address that nobody has any more is passed over after it.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// More than the way there and back takes.
const SLOW: Duration = Duration::from_millis(20);
/// From the beginning of one call to that of the next.
const CALL_EVERY: Duration = Duration::from_millis(2);
/// Where Docker resolves names inside of containers.
const RESOLVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);

fn call_until_told(name: &str) {
    let calls = Mutex::new(Calls::default());
    // There are never more of them at once than are begun within the time limits of one.
    thread::scope(|scope| {
        while !TERMINATED.load(Ordering::SeqCst) {
            scope.spawn(|| {
                let began = Instant::now();
                let answer = call(name);
                let mut calls = calls.lock().unwrap_or_else(PoisonError::into_inner);
                calls.note(began, answer);
            });
            thread::sleep(CALL_EVERY);
        }
    });
    let calls = calls.into_inner().unwrap_or_else(PoisonError::into_inner);
    let answered_by = |(version, _): &(String, u32)| version.clone();
    let (first, last) = (calls.versions.first(), calls.versions.last());
    stamp(
        "called",
        &format!(
            "calls={} failed={} slow={} silent_us={} longest_us={} passed_over={} first={} last={} changes={} first_failure={}",
            calls.calls,
            calls.failed,
            calls.slow,
            calls.silent.as_micros(),
            calls.longest.as_micros(),
            calls.passed_over,
            first.map(answered_by).unwrap_or_default(),
            last.map(answered_by).unwrap_or_default(),
            calls.versions.len().saturating_sub(1),
            calls.first_failure
        ),
    );
}

/// The version that answered, and how many addresses did not.
fn call(name: &str) -> (Result<String, String>, u32) {
    let addresses = match resolve(name) {
        Ok(addresses) => addresses,
        Err(error) => return (Err(format!("cannot resolve: {error}")), 0),
    };
    let (mut last, mut passed_over) = (String::from("no address"), 0);
    for address in addresses {
        match ask(address) {
            Ok(version) => return (Ok(version), passed_over),
            Err(error) => {
                passed_over += 1;
                last = format!("{address}: {error}");
            }
        }
    }
    (Err(last), passed_over)
}

fn ask(address: Ipv4Addr) -> io::Result<String> {
    let address = SocketAddr::from((address, port()));
    let mut stream = TcpStream::connect_timeout(&address, CALL_TIMEOUT)?;
    stream.set_read_timeout(Some(CALL_TIMEOUT))?;
    let mut version = String::new();
    stream.read_to_string(&mut version)?;
    if version.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(version.trim().to_owned())
}

/// The addresses of a name, asked of Docker's resolver: a static program has no other way.
fn resolve(name: &str) -> io::Result<Vec<Ipv4Addr>> {
    let mut question = vec![0x52, 0x46, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).expect("a label has at most 63 bytes"));
        question.extend_from_slice(label.as_bytes());
    }
    // The end of the name; an address (A) in the internet (IN).
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.set_read_timeout(Some(CALL_TIMEOUT))?;
    socket.send_to(&question, RESOLVER)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    let answer = &answer[..length];
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let count = u16::from_be_bytes([
        *answer.get(6).ok_or_else(malformed)?,
        *answer.get(7).ok_or_else(malformed)?,
    ]);
    let mut at = question.len();
    let mut addresses = Vec::new();
    for _ in 0..count {
        // The name again, as a pointer or in full; then type, class, time to live, and the length of what follows.
        if answer.get(at).ok_or_else(malformed)? & 0xc0 == 0xc0 {
            at += 2;
        } else {
            while *answer.get(at).ok_or_else(malformed)? != 0 {
                at += usize::from(answer[at]) + 1;
            }
            at += 1;
        }
        let head = answer.get(at..at + 10).ok_or_else(malformed)?;
        let size = usize::from(u16::from_be_bytes([head[8], head[9]]));
        let data = answer.get(at + 10..at + 10 + size).ok_or_else(malformed)?;
        if head[..2] == [0, 1] && size == 4 {
            addresses.push(Ipv4Addr::new(data[0], data[1], data[2], data[3]));
        }
        at += 10 + size;
    }
    Ok(addresses)
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
