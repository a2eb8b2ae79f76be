//! An echo server, UDP and TCP, that says which traits came with what it receives: `echo.rs` with tokio.
//!
//! ```text
//! traits sockets attach                                          # once, as root
//! cargo run -p packet-traits-socket --features tokio --example echo_tokio -- --tenant 7 127.0.0.1 7777    # as anybody, started after that
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
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use packet_traits_socket::{AsyncUdpTraits, Key, Keys, Receiver, SocketError, SocketTraits, TcpTraits, Traits, Value};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    signal::unix::{SignalKind, signal},
    time,
};

/// Connections that wait to be accepted, at most.
const BACKLOG: u32 = 1024;

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

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let Err(error) = serve(&args).await else { return ExitCode::SUCCESS };
    match error.downcast_ref() {
        Some(SocketError::NotAttached { .. }) => eprintln!(r#"not attached: run "traits sockets attach" as root"#),
        _ => eprintln!("cannot serve {} port {}: {error}", args.address, args.port),
    }
    ExitCode::FAILURE
}

/// Serves until SIGINT or SIGTERM.
async fn serve(args: &Args) -> Result<(), Box<dyn Error>> {
    let address = SocketAddr::new(args.address, args.port);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);

    // Has the socket receive traits, and reads the keys there are.
    let udp = Receiver::new(UdpSocket::bind(address).await?)?;
    let keys = Arc::new(udp.keys().clone());
    if let Some(tenant) = args.tenant {
        udp.socket().set_trait(&keys.typed("tenant")?, tenant)?;
    }

    let tcp = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Before it listens, so that no connection is without; accepted sockets inherit both.
    tcp.save_syn_traits(true)?;
    tcp.receive_traits(true)?;
    tcp.set_reuseaddr(true)?;
    tcp.bind(address)?;
    let tcp = tcp.listen(BACKLOG)?;

    tokio::spawn(serve_datagrams(udp));
    tokio::spawn(serve_connections(tcp, keys));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Sends every datagram back.
async fn serve_datagrams(udp: Receiver<UdpSocket>) {
    let mut data = vec![0; 65535];
    loop {
        report(answer_datagram(&udp, &mut data).await);
    }
}

/// Receives a datagram and sends it back.
async fn answer_datagram(udp: &Receiver<UdpSocket>, data: &mut [u8]) -> Result<(), Box<dyn Error>> {
    let received = udp.recv_async(data).await?;
    let (data, peer) = (&data[..received.len], received.from);
    println!("udp {peer} {}", words(udp.keys(), &received.traits));
    let mut answer = Traits::new(udp.keys());
    if let Some(flow_id) = udp.keys().get("flow_id")
        && let Some(value) = received.traits.value(flow_id)
    {
        answer.set_value(flow_id, &value)?;
    }
    match udp.socket().send_to_with_traits_async(data, peer, &answer).await {
        // After `traits sockets detach` the answer goes without traits.
        Err(SocketError::NotAttached { .. }) => udp.socket().send_to(data, peer).await?,
        other => other?,
    };
    Ok(())
}

/// Accepts connections, each served by a task of its own.
async fn serve_connections(tcp: TcpListener, keys: Arc<Keys>) {
    loop {
        match tcp.accept().await {
            Ok((stream, peer)) => {
                let keys = Arc::clone(&keys);
                tokio::spawn(async move { report(serve_connection(stream, peer, &keys).await) });
            }
            Err(error) => {
                report(Err(error.into()));
                // If there are too many open files, later there may not be.
                time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Receives what a connection has and sends it back, until its peer closes it.
async fn serve_connection(mut stream: TcpStream, peer: SocketAddr, keys: &Keys) -> Result<(), Box<dyn Error>> {
    println!("tcp {peer} syn {}", words(keys, &or_none(stream.syn_traits(keys), keys)?));
    let mut data = vec![0; 65536];
    loop {
        let len = stream.read(&mut data).await?;
        if len == 0 {
            return Ok(());
        }
        println!("tcp {peer} data {}", words(keys, &or_none(stream.last_traits(keys), keys)?));
        stream.write_all(&data[..len]).await?;
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
