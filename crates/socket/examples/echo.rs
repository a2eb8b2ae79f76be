//! An echo server, UDP and TCP, that says which traits came with what it receives. Sockets of the standard library, a
//! thread each.
//!
//! ```text
//! traits sockets attach                                      # once, as root
//! cargo run -p packet-traits-socket --example echo -- --tenant 7 127.0.0.1 7777      # as anybody, started after that
//! ```
//!
//! It prints a line for every datagram, for every connection (the traits of its SYN) and for all data on one:
//!
//! ```text
//! udp 10.77.0.1:40000 tenant=7 flow_id=12
//! tcp 10.77.0.1:40002 syn tenant=2 flow_id=14
//! tcp 10.77.0.1:40002 data tenant=2 flow_id=15
//! ```
//!
//! What it sends has traits as well, for the programs that see packets leave: the answer to a datagram has that
//! datagram's `flow_id`, and with `--tenant` all of them have `tenant`.

use std::{
    error::Error,
    io::{Read, Write},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    process::{self, ExitCode},
    thread,
    time::Duration,
};

use clap::Parser;
use packet_traits_socket::{Key, Keys, Receiver, SocketError, SocketTraits, TcpTraits, Traits, UdpTraits, Value};

/// Echo server that prints the traits of what it receives.
#[derive(Parser)]
struct Args {
    /// Tenant of all datagrams it sends
    #[arg(long)]
    tenant: Option<u32>,
    /// IPv4 or IPv6 address to listen on
    address: IpAddr,
    /// Port, the same for UDP and TCP
    port: u16,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let Err(error) = serve(&args) else { return ExitCode::SUCCESS };
    match error.downcast_ref() {
        Some(SocketError::NotAttached { .. }) => eprintln!(r#"not attached: run "traits sockets attach" as root"#),
        _ => eprintln!("cannot serve {} port {}: {error}", args.address, args.port),
    }
    ExitCode::FAILURE
}

/// Serves until SIGINT or SIGTERM.
fn serve(args: &Args) -> Result<(), Box<dyn Error>> {
    ctrlc::set_handler(|| process::exit(0))?;

    // Has the socket receive traits, and reads the keys there are.
    let udp = Receiver::new(UdpSocket::bind((args.address, args.port))?)?;
    let keys = udp.keys();
    if let Some(tenant) = args.tenant {
        udp.socket().set_trait(&keys.typed("tenant")?, tenant)?;
    }

    let tcp = TcpListener::bind((args.address, args.port))?;
    // Accepted sockets inherit both. The standard library listens already: a connection that came before this has no
    // traits of its SYN.
    tcp.save_syn_traits(true)?;
    tcp.receive_traits(true)?;

    thread::scope(|scope| {
        scope.spawn(|| {
            let mut data = vec![0; 65535];
            loop {
                report(answer_datagram(&udp, &mut data));
            }
        });
        loop {
            match tcp.accept() {
                Ok((stream, _)) => {
                    scope.spawn(move || report(serve_connection(stream, keys)));
                }
                Err(error) => {
                    report(Err(error.into()));
                    // If there are too many open files, later there may not be.
                    thread::sleep(Duration::from_secs(1));
                }
            }
        }
    })
}

/// Receives a datagram and sends it back.
fn answer_datagram(udp: &Receiver<UdpSocket>, data: &mut [u8]) -> Result<(), Box<dyn Error>> {
    let received = udp.recv(data)?;
    let (data, peer) = (&data[..received.len], received.from);
    println!("udp {peer} {}", words(udp.keys(), &received.traits));
    let mut answer = Traits::new(udp.keys());
    if let Some(flow_id) = udp.keys().get("flow_id")
        && let Some(value) = received.traits.value(flow_id)
    {
        answer.set_value(flow_id, &value)?;
    }
    match udp.socket().send_to_with_traits(data, peer, &answer) {
        // After `traits sockets detach` the answer goes without traits.
        Err(SocketError::NotAttached { .. }) => udp.socket().send_to(data, peer)?,
        other => other?,
    };
    Ok(())
}

/// Receives what a connection has and sends it back, until its peer closes it.
fn serve_connection(mut stream: TcpStream, keys: &Keys) -> Result<(), Box<dyn Error>> {
    let peer = stream.peer_addr()?;
    println!("tcp {peer} syn {}", words(keys, &or_none(stream.syn_traits(keys), keys)?));
    let mut data = vec![0; 65536];
    loop {
        let len = stream.read(&mut data)?;
        if len == 0 {
            return Ok(());
        }
        println!("tcp {peer} data {}", words(keys, &or_none(stream.last_traits(keys), keys)?));
        stream.write_all(&data[..len])?;
    }
}

/// None after `traits sockets detach`: the server goes on without traits.
fn or_none(traits: Result<Traits, SocketError>, keys: &Keys) -> Result<Traits, SocketError> {
    match traits {
        Err(SocketError::NotAttached { .. }) => Ok(Traits::new(keys)),
        other => other,
    }
}

/// `tenant=7 flow_id=12`; of a flag just the name.
fn words(keys: &Keys, traits: &Traits) -> String {
    let word = |(key, value): (&Key, Value)| match value {
        Value::Flag => key.name().to_string(),
        // A number, as the examples in other languages print it.
        Value::Timestamp(ns) => format!("{}={ns}", key.name()),
        _ => format!("{}={value}", key.name()),
    };
    let mark = traits.mark().filter(|mark| *mark != 0).map(|mark| format!("mark={mark}"));
    let words: Vec<String> = traits.iter(keys).map(word).chain(mark).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(" ") }
}

/// Says on standard error what was not served. The others are.
fn report(served: Result<(), Box<dyn Error>>) {
    if let Err(error) = served {
        eprintln!("cannot serve: {error}");
    }
}
