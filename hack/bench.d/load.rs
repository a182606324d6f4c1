//! Load and origin of `hack/bench egress`: std only, compiled with rustc by it.
//!
//!   load serve ADDRESS                      the origin
//!   load new TARGET VIA SECONDS OPEN THREADS  connect, one exchange, close, again and
//!                                           again, OPEN at once; further THREADS wait
//!   load down|up TARGET VIA SECONDS STREAMS bytes one way
//!   load idle TARGET VIA COUNT              holds tunnels until its input ends
//!   load crowd COUNT                        COUNT processes of `load park`
//!   load park                               a process with ten open files
//!
//! VIA is a proxy that takes CONNECT, or `-`. What a client says first is 64 bytes
//! of which one counts; results are one line of `name=value`.

use std::ffi::{c_int, c_short, c_ulong};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

type Answer<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Connections the origin serves at once; held ones do not count.
const SERVED: usize = 64;
const RECORD: usize = 64;
/// The last byte of an upload; the others are zero.
const LAST: u8 = b'.';
const CHUNK: usize = 256 * 1024;
/// How long opening tunnels may take.
const PATIENCE: Duration = Duration::from_secs(20);
const FOREVER: Duration = Duration::from_secs(1 << 30);

fn main() -> Answer<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["serve", address] => serve(address),
        ["new", target, via, seconds, open, threads] => {
            for _ in 0..threads.parse()? {
                thread::spawn(|| thread::sleep(FOREVER));
            }
            let lasts = Duration::from_secs_f64(seconds.parse()?);
            renew(Path::new(target, via)?, lasts, open.parse()?)
        }
        [way @ ("down" | "up"), target, via, seconds, streams] => bulk(
            Path::new(target, via)?,
            way == "down",
            Duration::from_secs_f64(seconds.parse()?),
            streams.parse()?,
        ),
        ["idle", target, via, count] => idle(Path::new(target, via)?, count.parse()?),
        ["crowd", count] => crowd(count.parse()?),
        ["park"] => park(),
        _ => Err("see the head of load.rs".into()),
    }
}

/// How a client gets to the origin.
#[derive(Clone, Copy)]
struct Path {
    target: SocketAddr,
    via: Option<SocketAddr>,
}

impl Path {
    fn new(target: &str, via: &str) -> Answer<Self> {
        let via = if via == "-" { None } else { Some(via.parse()?) };
        Ok(Self { target: target.parse()?, via })
    }

    /// A connection that may have to be granted yet.
    fn dial(self) -> io::Result<TcpStream> {
        let mut stream = TcpStream::connect(self.via.unwrap_or(self.target))?;
        stream.set_nodelay(true)?;
        if self.via.is_some() {
            let to = self.target;
            stream.write_all(format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").as_bytes())?;
        }
        Ok(stream)
    }

    /// A connection that has said `word`.
    fn open(self, word: u8) -> io::Result<TcpStream> {
        let mut stream = self.dial()?;
        let mut heard = Vec::new();
        while self.via.is_some() && !granted(&heard)? {
            hear(&mut stream, &mut heard)?;
        }
        stream.write_all(&[word; RECORD])?;
        Ok(stream)
    }

    /// A connection with one exchange behind it.
    fn exchange(self, word: u8) -> io::Result<TcpStream> {
        let mut stream = self.open(word)?;
        stream.read_exact(&mut [0; RECORD])?;
        Ok(stream)
    }
}

fn serve(address: &str) -> Answer<()> {
    let listener = TcpListener::bind(address)?;
    println!("ready");
    let held = Arc::new(Mutex::new(Vec::new()));
    let workers: Vec<_> = (0..SERVED)
        .map(|_| {
            let (listener, held) = (listener.try_clone(), Arc::clone(&held));
            thread::spawn(move || -> io::Result<()> {
                let (listener, mut buffer) = (listener?, vec![0; CHUNK]);
                loop {
                    // A client that breaks off ends its own connection only.
                    let _ended = listener
                        .accept()
                        .and_then(|(stream, _)| answer(stream, &held, &mut buffer));
                }
            })
        })
        .collect();
    for worker in workers {
        worker.join().map_err(|_| "a worker failed")??;
    }
    Ok(())
}

fn answer(
    mut stream: TcpStream,
    held: &Mutex<Vec<TcpStream>>,
    buffer: &mut [u8],
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut record = [0; RECORD];
    stream.read_exact(&mut record)?;
    match record[0] {
        b'd' => loop {
            stream.write_all(buffer)?;
        },
        b'u' => {
            // Ended by a word, as not every proxy passes on the end of one direction.
            loop {
                let length = stream.read(buffer)?;
                match buffer[..length].last() {
                    Some(&LAST) => return stream.write_all(&record),
                    Some(_) => {}
                    None => return Ok(()),
                }
            }
        }
        b'i' => {
            stream.write_all(&record)?;
            held.lock().map_err(|_| io::Error::other("poisoned"))?.push(stream);
            Ok(())
        }
        word => {
            if word == b'x' {
                held.lock().map_err(|_| io::Error::other("poisoned"))?.clear();
            }
            stream.write_all(&record)?;
            stream.read(&mut record).map(|_end| ())
        }
    }
}

fn hear(stream: &mut TcpStream, heard: &mut Vec<u8>) -> io::Result<()> {
    let mut part = [0; 2048];
    let length = stream.read(&mut part)?;
    heard.extend(&part[..length]);
    if length == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

/// Whether the answer to CONNECT is complete.
fn granted(heard: &[u8]) -> io::Result<bool> {
    let complete = heard.ends_with(b"\r\n\r\n");
    if complete && heard.get(8..12) != Some(b" 200") {
        return Err(io::Error::other("CONNECT was refused"));
    }
    Ok(complete)
}

/// A connection of [`renew`].
struct Client {
    stream: TcpStream,
    asked: Instant,
    heard: Vec<u8>,
    open: bool,
}

impl Client {
    fn new(path: Path) -> io::Result<Self> {
        let (asked, mut stream) = (Instant::now(), path.dial()?);
        let open = path.via.is_none();
        if open {
            stream.write_all(&[b'r'; RECORD])?;
        }
        Ok(Self { stream, asked, heard: Vec::new(), open })
    }

    /// Takes what there is to read; true at the end.
    fn step(&mut self) -> io::Result<bool> {
        hear(&mut self.stream, &mut self.heard)?;
        if !self.open && granted(&self.heard)? {
            self.open = true;
            self.heard.clear();
            self.stream.write_all(&[b'r'; RECORD])?;
        }
        Ok(self.open && self.heard.len() >= RECORD)
    }
}

#[repr(C)]
struct PollFd {
    fd: RawFd,
    events: c_short,
    revents: c_short,
}

unsafe extern "C" {
    fn poll(fds: *mut PollFd, count: c_ulong, milliseconds: c_int) -> c_int;
}

/// One thread: what threads cost a proxy that looks for its caller is asked for apart.
fn renew(path: Path, lasts: Duration, open: usize) -> Answer<()> {
    const POLLIN: c_short = 1;
    let began = Instant::now();
    let mut clients = (0..open).map(|_| Client::new(path)).collect::<io::Result<Vec<_>>>()?;
    let (mut times, mut errors) = (Vec::with_capacity(1 << 16), 0);
    while began.elapsed() < lasts || times.len() + errors == 0 {
        let mut polled: Vec<_> = clients
            .iter()
            .map(|client| PollFd { fd: client.stream.as_raw_fd(), events: POLLIN, revents: 0 })
            .collect();
        let count = c_ulong::try_from(polled.len())?;
        // SAFETY: the pointer and the count are those of one vector.
        if unsafe { poll(polled.as_mut_ptr(), count, 5000) } <= 0 {
            return Err("no answer in five seconds".into());
        }
        for index in (0..open).rev().filter(|index| polled[*index].revents != 0) {
            let done = match clients[index].step() {
                Ok(false) => continue,
                Ok(true) => true,
                Err(_) => false,
            };
            // What comes in its place has been looked at.
            let Client { asked, stream, .. } = clients.swap_remove(index);
            drop(stream);
            if done {
                times.push(asked.elapsed());
            } else {
                errors += 1;
                thread::sleep(Duration::from_millis(1));
            }
            clients.push(Client::new(path)?);
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: usize| {
        times.get(times.len() * share / 100).map_or(0.0, |time| time.as_secs_f64() * 1e6)
    };
    println!(
        "count={} errors={errors} rate={:.1} p50={:.1} p99={:.1}",
        times.len(),
        times.len() as f64 / seconds,
        at(50),
        at(99)
    );
    Ok(())
}

fn bulk(path: Path, down: bool, lasts: Duration, streams: usize) -> Answer<()> {
    let together = Arc::new(Barrier::new(streams));
    let streams: Vec<_> = (0..streams)
        .map(|_| {
            let together = Arc::clone(&together);
            thread::spawn(move || -> io::Result<(u64, f64)> {
                let opened = path.open(if down { b'd' } else { b'u' });
                together.wait();
                let (mut stream, mut buffer) = (opened?, vec![0; CHUNK]);
                let (began, mut bytes) = (Instant::now(), 0);
                while began.elapsed() < lasts {
                    match if down { stream.read(&mut buffer)? } else { stream.write(&buffer)? } {
                        0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                        moved => bytes += moved as u64,
                    }
                }
                if !down {
                    // It has arrived when the origin says so.
                    stream.write_all(&[LAST])?;
                    stream.read_exact(&mut [0; RECORD])?;
                }
                Ok((bytes, began.elapsed().as_secs_f64()))
            })
        })
        .collect();
    let (mut bytes, mut seconds, mut errors) = (0, 0.0_f64, 0);
    for stream in streams {
        match stream.join().map_err(|_| "a stream failed")? {
            Ok((more, time)) => (bytes, seconds) = (bytes + more, seconds.max(time)),
            Err(_) => errors += 1,
        }
    }
    println!("bytes={bytes} errors={errors} seconds={seconds:.6}");
    Ok(())
}

fn idle(path: Path, count: usize) -> Answer<()> {
    let began = Instant::now();
    let (mut held, mut errors) = (Vec::new(), 0);
    for _ in 0..count {
        match path.exchange(b'i') {
            Ok(stream) => held.push(stream),
            Err(_) => errors += 1,
        }
        if errors > 10 || began.elapsed() > PATIENCE {
            break;
        }
    }
    println!("held={} seconds={:.3}", held.len(), began.elapsed().as_secs_f64());
    io::copy(&mut io::stdin(), &mut io::sink())?;
    drop(held);
    path.exchange(b'x')?;
    Ok(())
}

fn crowd(count: usize) -> Answer<()> {
    let own = std::env::current_exe()?;
    for _ in 0..count {
        Command::new(&own).arg("park").stdout(Stdio::null()).spawn()?;
    }
    println!("ready");
    park()
}

fn park() -> Answer<()> {
    let _files: Vec<File> = (3..10).map(|_| File::open("/dev/null")).collect::<Result<_, _>>()?;
    thread::sleep(FOREVER);
    Ok(())
}
