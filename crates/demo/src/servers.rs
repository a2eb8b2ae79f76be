//! Who receives: the applications. UDP servers that send everything back, and TCP servers.
//!
//! They read the traits of what they get as any program may whose cgroup is served: by socket options, without
//! privileges, and with nothing of the demo's but the keys' names.

use std::{
    error::Error,
    io::{self, ErrorKind},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::Sender,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use packet_traits::{Timestamp, TypedKey};
use packet_traits_lab::{Cgroup, SinkEvent, TcpSink, number_of, udp_socket};
use packet_traits_socket::{Keys, Receiver, ReceiverOptions, SocketError, SocketTraits, TcpTraits};

use packet_traits_terminal::clock;

use super::{
    flows::{FLOWS, Flow, Kind},
    network::Network,
    records::{Record, Stage, Traits},
    traffic::{DATAGRAM, WINDOW},
};

/// How often a server looks whether it should stop.
const STOP_INTERVAL: Duration = Duration::from_millis(20);

/// The receiving ends of the flows that are not dropped. They serve until they are dropped.
pub(super) struct Servers {
    echoes: Vec<Arc<UdpSocket>>,
    sinks: Vec<(Flow, TcpSink)>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Servers {
    /// Starts them, with sockets of this cgroup. They tell `seen` what they read.
    pub(super) fn start(network: &Network, cgroup: &Cgroup, seen: &Sender<Record>) -> Result<Servers, Box<dyn Error>> {
        let mut servers = Servers { echoes: Vec::new(), sinks: Vec::new(), stop: Arc::default(), threads: Vec::new() };
        for flow in FLOWS {
            let (netns, at) = (network.rx(flow.route).netns(), network.to(&flow));
            match flow.kind {
                Kind::Echo => {
                    let socket = cgroup.enter(|| udp_socket(netns, at))?;
                    socket.set_read_timeout(Some(STOP_INTERVAL))?;
                    servers.start_echo(flow, Arc::new(socket), seen.clone())?;
                }
                Kind::Transfer => {
                    let listener = cgroup.enter(|| netns.enter(|| TcpListener::bind(at)))?;
                    servers.sinks.push((flow, start_sink(flow, listener, seen.clone())?));
                }
                Kind::ClosedPort | Kind::Filtered => {}
            }
        }
        Ok(servers)
    }

    fn start_echo(&mut self, flow: Flow, socket: Arc<UdpSocket>, seen: Sender<Record>) -> Result<(), Box<dyn Error>> {
        // the registry's ring is for root; this is how everybody else reads
        let options = ReceiverOptions::new().without_ring().batch(WINDOW as usize, DATAGRAM);
        let receiver = options.build(Arc::clone(&socket))?;
        let keys = DemoKeys::find(receiver.keys().clone())?;
        let stop = Arc::clone(&self.stop);
        let serve = move || {
            let mut echo = Echo { flow, receiver, keys, seen };
            while !stop.load(Ordering::Relaxed) {
                if let Err(error) = echo.serve() {
                    complain(&flow, &error);
                    thread::sleep(STOP_INTERVAL);
                }
            }
        };
        self.threads.push(thread::Builder::new().name("udp-echo".into()).spawn(serve)?);
        self.echoes.push(socket);
        Ok(())
    }

    /// The UDP servers' sockets, to attach a filter to.
    pub(super) fn datagram_sockets(&self) -> impl Iterator<Item = impl AsFd> {
        self.echoes.iter()
    }

    /// Bytes that the server of a transfer has received right.
    pub(super) fn received(&self, flow: &Flow) -> u64 {
        self.sinks.iter().find(|(of, _)| of == flow).map_or(0, |(_, sink)| sink.received())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // a server that panicked has said so on standard error
            let _ = thread.join();
        }
    }
}

/// Sends back what comes.
struct Echo {
    flow: Flow,
    receiver: Receiver<Arc<UdpSocket>>,
    keys: DemoKeys,
    seen: Sender<Record>,
}

impl Echo {
    /// Serves what is there, or what comes within [`STOP_INTERVAL`].
    fn serve(&mut self) -> io::Result<()> {
        let socket = Arc::clone(self.receiver.socket());
        let batch = match self.receiver.recv_batch() {
            Ok(batch) => batch,
            Err(error) => {
                let error = io::Error::from(error);
                return match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(()),
                    _ => Err(error),
                };
            }
        };
        for datagram in batch {
            let record = Record {
                number: number_of(datagram.data()),
                bytes: datagram.data().len() as u32,
                ..self.keys.record(&self.flow, &datagram.traits())
            };
            // after Ctrl-C nobody listens any more; a reply that is not sent is missed by who waits for it
            let _ = self.seen.send(record);
            let _ = socket.send_to(datagram.data(), datagram.from());
        }
        Ok(())
    }
}

/// Starts a TCP server that reads the traits of each connection's SYN, and in the end those of the newest data.
fn start_sink(flow: Flow, listener: TcpListener, seen: Sender<Record>) -> Result<TcpSink, Box<dyn Error>> {
    listener.save_syn_traits(true)?;
    listener.receive_traits(true)?;
    let keys = DemoKeys::find(Keys::of(&listener)?)?;
    let read = move |stream: &TcpStream, event| -> Result<Record, SocketError> {
        Ok(match event {
            SinkEvent::Accepted => Record { syn: true, ..keys.record(&flow, &stream.syn_traits(&keys.all)?) },
            SinkEvent::Received(bytes) => {
                Record { bytes: bytes as u32, ..keys.record(&flow, &stream.last_traits(&keys.all)?) }
            }
        })
    };
    let watch = move |stream: &TcpStream, event| match read(stream, event) {
        Ok(record) => drop(seen.send(record)),
        Err(error) => complain(&flow, &error),
    };
    Ok(TcpSink::serve(listener, watch)?)
}

/// What a server could not read is missing in the end, and this is why.
fn complain(flow: &Flow, error: &dyn Error) {
    tracing::warn!("server of {flow}: {error}");
}

/// The demo's keys, as a server finds them.
struct DemoKeys {
    all: Keys,
    tenant: TypedKey<u32>,
    flow_id: FlowId,
    rx_ts: TypedKey<Timestamp>,
}

/// The key `flow_id`, as long as the area lets it be.
enum FlowId {
    Long(TypedKey<u64>),
    Short(TypedKey<u32>),
}

impl FlowId {
    fn find(all: &Keys) -> Result<FlowId, SocketError> {
        const NAME: &str = "flow_id";
        all.typed(NAME).map(FlowId::Long).or_else(|_| all.typed(NAME).map(FlowId::Short))
    }

    fn of(&self, traits: &packet_traits_socket::Traits) -> Option<u64> {
        match self {
            FlowId::Long(key) => traits.get(key),
            FlowId::Short(key) => traits.get(key).map(u64::from),
        }
    }
}

impl DemoKeys {
    fn find(all: Keys) -> Result<DemoKeys, SocketError> {
        let (tenant, flow_id, rx_ts) = (all.typed("tenant")?, FlowId::find(&all)?, all.typed("rx_ts")?);
        Ok(DemoKeys { all, tenant, flow_id, rx_ts })
    }

    /// What has just been read of a packet.
    fn record(&self, flow: &Flow, traits: &packet_traits_socket::Traits) -> Record {
        let now = clock::now();
        let read = || {
            let Timestamp(rx_ts) = traits.get(&self.rx_ts)?;
            Some(Traits { flow_id: self.flow_id.of(traits)?, rx_ts, tenant: traits.get(&self.tenant)? })
        };
        let stage = Stage::Application;
        Record { stage, port: flow.port, number: None, syn: false, bytes: 0, reason: 0, now, traits: read() }
    }
}
