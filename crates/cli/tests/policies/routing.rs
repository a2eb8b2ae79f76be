//! A trait chooses the routing table, behind decapsulation, by way of the packet's mark.

use std::{
    io::ErrorKind,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use packet_traits_lab::{
    EndSpec, Family, KernelFeature, Mac, Netns, VethOptions, VethPair, VxlanOptions, VxlanPair, number_of,
    recv_numbered, send_numbered, udp_socket,
};

use crate::host::Host;

const PORT: u16 = 7777;
const DATAGRAMS: u64 = 50;
/// The address that both tenants call their service by.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 9);
/// In the net of tenant 2002 only.
const OF_2002: Ipv4Addr = Ipv4Addr::new(10, 100, 2, 9);

fn side(name: &str, block: u8, network: u8, host: u8) -> EndSpec {
    EndSpec::new(
        name,
        Mac([2, block, 0, 0, network, host]),
        Ipv4Addr::new(10, block, network, host),
        Ipv6Addr::new(0xfd00, block.into(), network.into(), 0, 0, 0, 0, host.into()),
    )
}

/// A tenant: its tunnel into the router, and its servers behind it.
struct Tenant {
    tunnel: VxlanPair,
    servers: VethPair,
}

/// A sender with a tunnel for each tenant, a router, and the tenants' servers, which have the same addresses.
struct Network {
    link: VethPair,
    tenants: [(u32, Tenant); 2],
}

impl Network {
    fn new() -> Network {
        let (sender, router) = (Netns::new().unwrap(), Netns::new().unwrap());
        router.set_sysctl("net/ipv4/ip_forward", "1").unwrap();
        let options = VethOptions::new();
        let link =
            VethPair::connect((&sender, &side("tx0", 77, 0, 1)), (&router, &side("rx0", 77, 0, 2)), &options).unwrap();
        let tenants = [(1001, 1), (2002, 2)].map(|(vni, number)| {
            let inner = |name: &str, host| side(&format!("{name}{number}"), 78, number, host);
            let tunnel =
                VxlanPair::connect(&link, &inner("vxt", 1), &inner("vxr", 2), &VxlanOptions::new(Family::V4).vni(vni))
                    .unwrap();
            let outer = |name: &str, host| side(&format!("{name}{number}"), 80, number, host);
            let servers = Netns::new().unwrap();
            let servers =
                VethPair::connect((&router, &outer("to", 1)), (&servers, &outer("srv", 2)), &options).unwrap();
            let server = servers.right();
            for address in [SERVICE, OF_2002] {
                server.netns().ip(&format!("address add {address}/32 dev {}", server.name())).unwrap();
            }
            // each tenant's packets leave the sender by its own tunnel, and have a way on in its own table only
            let (from, via) = (tunnel.left().ipv4(), tunnel.right().ipv4());
            sender.ip(&format!("rule add from {from} lookup {vni}\nroute add default via {via} table {vni}")).unwrap();
            router
                .ip(&format!("rule add fwmark {vni} lookup {vni}\nroute add default via {} table {vni}", server.ipv4()))
                .unwrap();
            (vni, Tenant { tunnel, servers })
        });
        Network { link, tenants }
    }
}

impl Tenant {
    fn sender(&self) -> UdpSocket {
        let from = self.tunnel.left();
        udp_socket(from.netns(), from.addr(Family::V4, 0)).unwrap()
    }

    fn server(&self, address: Ipv4Addr) -> UdpSocket {
        udp_socket(self.servers.right().netns(), SocketAddr::new(address.into(), PORT)).unwrap()
    }
}

/// Numbers of all datagrams that come until none has come for a while.
fn received(socket: &UdpSocket) -> Vec<u64> {
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut numbers = Vec::new();
    let mut buffer = [0; 2048];
    loop {
        match socket.recv(&mut buffer) {
            Ok(len) => numbers.push(number_of(&buffer[..len]).unwrap()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return numbers,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn the_tunnel_a_packet_came_in_chooses_its_routing_table() {
    let Some(host) = Host::on(&[KernelFeature::NetfilterLinks]) else { return };
    let network = Network::new();
    let servers = network.tenants.each_ref().map(|(_, tenant)| tenant.server(SERVICE));
    let send = |first: u64| {
        for (number, (_, tenant)) in network.tenants.iter().enumerate() {
            let start = first + number as u64 * 1000;
            send_numbered(&tenant.sender(), (SERVICE, PORT).into(), start..start + DATAGRAMS, 64).unwrap();
        }
    };

    send(0);
    assert_eq!(servers.each_ref().map(received), [[0; 0]; 2], "without the policy there is no way");

    host.up(network.link.right(), &Host::example("tenant-isolation.traits"), &[]);
    send(10_000);
    for (number, server) in servers.iter().enumerate() {
        let first = 10_000 + number as u64 * 1000;
        for expected in first..first + DATAGRAMS {
            assert_eq!(recv_numbered(server).unwrap(), expected, "tenant {number}");
        }
        assert_eq!(received(server), [0; 0], "nothing of the other tenant's");
    }
}

#[test]
fn a_tenant_does_not_reach_what_is_not_its_own() {
    let Some(host) = Host::on(&[KernelFeature::NetfilterLinks]) else { return };
    let network = Network::new();
    host.up(network.link.right(), &Host::example("tenant-isolation.traits"), &[]);
    let servers = network.tenants.each_ref().map(|(_, tenant)| tenant.server(OF_2002));
    for (_, tenant) in &network.tenants {
        send_numbered(&tenant.sender(), (OF_2002, PORT).into(), 0..DATAGRAMS, 64).unwrap();
    }
    let [of_1001, of_2002] = servers.each_ref().map(received);
    assert_eq!(of_1001, [0; 0]);
    assert_eq!(of_2002, Vec::from_iter(0..DATAGRAMS));
    host.wait_for("tenant-isolation", "crossed", Some("1001"), DATAGRAMS);
    assert_eq!(host.counted("tenant-isolation", "crossed", Some("2002")), 0);
}

#[test]
fn a_tunnel_that_nobody_has_rented_is_shut() {
    let Some(host) = Host::on(&[KernelFeature::NetfilterLinks]) else { return };
    let network = Network::new();
    let (tx, rx) = (network.link.left(), network.link.right());
    host.up(rx, &Host::example("tenant-isolation.traits"), &[]);
    let tunnel = |vni| {
        let spec = |name: &str, host| side(name, 90, 3, host);
        let options = VxlanOptions::new(Family::V4).vni(vni);
        VxlanPair::connect(&network.link, &spec("vxt3", 1), &spec("vxr3", 2), &options).unwrap()
    };
    let shut = tunnel(3003);
    let receiver = udp_socket(rx.netns(), shut.right().addr(Family::V4, PORT)).unwrap();
    let sender = udp_socket(tx.netns(), shut.left().addr(Family::V4, 0)).unwrap();
    send_numbered(&sender, receiver.local_addr().unwrap(), 0..DATAGRAMS, 64).unwrap();
    // the tunnel's devices also send a few packets of their own
    assert_eq!(received(&receiver), [0; 0]);
    assert!(host.counted("tenant-isolation", "unknown_tunnel", None) >= DATAGRAMS);
}
