//! What a network namespace tells everybody of itself: addresses of its interfaces, VLAN devices, forwarding.

use std::{
    ffi::CStr,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ptr,
};

use packet_traits::NetfilterFamily;

use super::frame::Mac;

/// Where procfs shows the calling thread's network namespace.
const NET: &str = "/proc/thread-self/net";
const SYSCTL: &str = "/proc/sys/net";

/// The host, as far as this network namespace goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Host {
    /// Addresses of interfaces that are up, with the interfaces' names.
    pub(crate) addresses: Vec<(String, IpAddr)>,
    /// Anycast addresses that interfaces take packets for: those of a router (RFC 4291 section 2.6.1), and what processes
    /// have joined.
    pub(crate) anycasts: Vec<(String, Ipv6Addr)>,
    /// Broadcast addresses of the networks they are in.
    pub(crate) broadcasts: Vec<(String, Ipv4Addr)>,
    /// Ethernet addresses.
    pub(crate) macs: Vec<(String, Mac)>,
    /// VLAN devices; `None` if only root may know.
    pub(crate) vlans: Option<Vec<Vlan>>,
    /// Whether it forwards packets: IPv4, IPv6.
    pub(crate) forwards: (bool, bool),
}

/// A device for a VLAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Vlan {
    /// Its name.
    pub(crate) name: String,
    /// The VLAN's id.
    pub(crate) id: u16,
    /// The interface below.
    pub(crate) below: String,
}

impl Host {
    /// Looks at this network namespace.
    pub(crate) fn read() -> io::Result<Host> {
        let mut host = Host {
            anycasts: anycasts(),
            vlans: vlans(),
            forwards: (forwards_ipv4(), forwards_ipv6()),
            ..Host::default()
        };
        host.read_interfaces()?;
        Ok(host)
    }

    fn read_interfaces(&mut self) -> io::Result<()> {
        let mut list: *mut libc::ifaddrs = ptr::null_mut();
        // SAFETY: getifaddrs(3) writes a pointer to where the argument points.
        if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut next = list;
        // SAFETY: getifaddrs has made a list of valid entries, whose end is null; nothing has freed it.
        while let Some(entry) = unsafe { next.as_ref() } {
            next = entry.ifa_next;
            // an interface that is down has no local addresses (fib_disable_ip in net/ipv4/fib_frontend.c)
            if entry.ifa_flags & libc::IFF_UP.cast_unsigned() != 0 {
                self.note(entry);
            }
        }
        // SAFETY: the list is getifaddrs' and is freed once.
        unsafe { libc::freeifaddrs(list) };
        Ok(())
    }

    fn note(&mut self, entry: &libc::ifaddrs) {
        // SAFETY: an entry of getifaddrs has a NUL-terminated name.
        let name = unsafe { CStr::from_ptr(entry.ifa_name) }.to_string_lossy().into_owned();
        // SAFETY: its address is null or points to a socket address.
        let Some(address) = (unsafe { entry.ifa_addr.as_ref() }) else { return };
        match i32::from(address.sa_family) {
            libc::AF_INET => {
                let address = ipv4(entry.ifa_addr);
                self.addresses.push((name.clone(), address.into()));
                if entry.ifa_flags & libc::IFF_BROADCAST.cast_unsigned() != 0 && !entry.ifa_ifu.is_null() {
                    self.broadcasts.push((name.clone(), ipv4(entry.ifa_ifu)));
                }
                if !entry.ifa_netmask.is_null() {
                    self.broadcasts.extend(network_broadcast(address, ipv4(entry.ifa_netmask)).map(|all| (name, all)));
                }
            }
            libc::AF_INET6 => {
                // SAFETY: an address of this family is a sockaddr_in6; it need not be aligned as one.
                let address = unsafe { entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned() };
                self.addresses.push((name, Ipv6Addr::from(address.sin6_addr.s6_addr).into()));
            }
            libc::AF_PACKET => {
                // SAFETY: an address of this family is a sockaddr_ll; it need not be aligned as one.
                let address = unsafe { entry.ifa_addr.cast::<libc::sockaddr_ll>().read_unaligned() };
                if let (6, Some(mac)) = (address.sll_halen, address.sll_addr.first_chunk()) {
                    self.macs.push((name, *mac));
                }
            }
            _ => {}
        }
    }

    /// The interface that has an address.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<&str> {
        self.addresses.iter().find(|(_, its)| *its == address).map(|(name, _)| name.as_str())
    }

    /// The interface that takes packets for an anycast address.
    pub(crate) fn owner_of_anycast(&self, address: IpAddr) -> Option<&str> {
        self.anycasts.iter().find(|(_, its)| IpAddr::from(*its) == address).map(|(name, _)| name.as_str())
    }

    /// The interface that has an Ethernet address.
    pub(crate) fn owner_of_mac(&self, mac: Mac) -> Option<&str> {
        self.macs.iter().find(|(_, its)| *its == mac && mac != [0; 6]).map(|(name, _)| name.as_str())
    }

    /// The interface in whose network an address is the broadcast address.
    pub(crate) fn broadcasts_to(&self, address: IpAddr) -> Option<&str> {
        self.broadcasts.iter().find(|(_, its)| IpAddr::from(*its) == address).map(|(name, _)| name.as_str())
    }

    /// Whether some interface forwards packets of a family.
    pub(crate) fn forwards(&self, family: NetfilterFamily) -> bool {
        match family {
            NetfilterFamily::Ipv4 => self.forwards.0,
            NetfilterFamily::Ipv6 => self.forwards.1,
        }
    }
}

/// The broadcast address of an address's network, which the kernel knows even if the interface was given none
/// (`fib_add_ifaddr` in net/ipv4/fib_frontend.c): networks of one or two addresses have none.
fn network_broadcast(address: Ipv4Addr, mask: Ipv4Addr) -> Option<Ipv4Addr> {
    let (address, mask) = (address.to_bits(), mask.to_bits());
    (mask.leading_ones() < 31 && mask != 0).then(|| Ipv4Addr::from_bits(address | !mask))
}

/// The address in a socket address of IPv4.
fn ipv4(address: *const libc::sockaddr) -> Ipv4Addr {
    // SAFETY: the caller has an IPv4 address of getifaddrs, which is a sockaddr_in; it need not be aligned as one.
    let address = unsafe { address.cast::<libc::sockaddr_in>().read_unaligned() };
    Ipv4Addr::from_bits(u32::from_be(address.sin_addr.s_addr))
}

/// None, if the kernel has no IPv6.
fn anycasts() -> Vec<(String, Ipv6Addr)> {
    fs::read_to_string(format!("{NET}/anycast6")).map(|text| parse_anycasts(&text)).unwrap_or_default()
}

/// Reads what `ac6_seq_show` in net/ipv6/anycast.c writes: `2    eth0            fd000000000000000000000000000000     1`.
fn parse_anycasts(text: &str) -> Vec<(String, Ipv6Addr)> {
    let anycast = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (name, digits) = (words.next()?, words.next()?);
        Some((name.to_owned(), Ipv6Addr::from_bits(u128::from_str_radix(digits, 16).ok()?)))
    };
    text.lines().filter_map(anycast).collect()
}

/// Without its directory, which `vlan_proc_init` in net/8021q/vlanproc.c makes, the kernel has no VLAN devices. Only root
/// may read the file.
fn vlans() -> Option<Vec<Vlan>> {
    let folder = format!("{NET}/vlan");
    let files = match fs::read_dir(&folder) {
        Ok(files) => files.count(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(_) => return None,
    };
    // `config` alone
    if files <= 1 {
        return Some(Vec::new());
    }
    fs::read_to_string(format!("{folder}/config")).ok().map(|text| parse_vlans(&text))
}

/// Reads what `vlan_seq_show` in net/8021q/vlanproc.c writes: `eth0.100       | 100  | eth0`, below two lines of titles.
fn parse_vlans(text: &str) -> Vec<Vlan> {
    let vlan = |line: &str| {
        let mut cells = line.split('|').map(str::trim);
        let (name, id, below) = (cells.next()?, cells.next()?.parse().ok()?, cells.next()?);
        Some(Vlan { name: name.to_owned(), id, below: below.to_owned() })
    };
    text.lines().filter_map(vlan).collect()
}

fn is_set(sysctl: &str) -> bool {
    fs::read_to_string(sysctl).is_ok_and(|value| value.trim() != "0")
}

/// Each interface has its own setting (`IN_DEV_FORWARD`).
fn forwards_ipv4() -> bool {
    let Ok(interfaces) = fs::read_dir(format!("{SYSCTL}/ipv4/conf")) else { return false };
    let names = interfaces.filter_map(|interface| interface.ok()?.file_name().into_string().ok());
    names.filter(|name| name != "default").any(|name| is_set(&format!("{SYSCTL}/ipv4/conf/{name}/forwarding")))
}

/// One setting counts for all interfaces, or one of them is told to (`ip6_forward` in net/ipv6/ip6_output.c).
fn forwards_ipv6() -> bool {
    if is_set(&format!("{SYSCTL}/ipv6/conf/all/forwarding")) {
        return true;
    }
    let Ok(interfaces) = fs::read_dir(format!("{SYSCTL}/ipv6/conf")) else { return false };
    let names = interfaces.filter_map(|interface| interface.ok()?.file_name().into_string().ok());
    names.filter(|name| name != "default").any(|name| is_set(&format!("{SYSCTL}/ipv6/conf/{name}/force_forwarding")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vlan_devices_are_read_from_their_list() {
        let text = "VLAN Dev name\t | VLAN ID\nName-Type: VLAN_NAME_TYPE_RAW_PLUS_VID_NO_PAD\n\
                    eth0.100       | 100  | eth0\nguests         | 7  | eth1\n";
        let vlan = |name: &str, id, below: &str| Vlan { name: name.to_owned(), id, below: below.to_owned() };
        assert_eq!(parse_vlans(text), [vlan("eth0.100", 100, "eth0"), vlan("guests", 7, "eth1")]);
    }

    #[test]
    fn anycast_addresses_are_read_from_their_list() {
        let text = "2    eth0            fd000000000000070000000000000000     1\n\
                    13   veth12345678901 fe800000000000000000000000000000     2\n";
        let anycast = |name: &str, address: &str| (name.to_owned(), address.parse::<Ipv6Addr>().unwrap());
        assert_eq!(parse_anycasts(text), [anycast("eth0", "fd00:0:0:7::"), anycast("veth12345678901", "fe80::")]);
    }

    #[test]
    fn a_network_has_a_broadcast_address_also_if_nobody_gave_it_one() {
        let of = |address: &str, mask: &str| {
            network_broadcast(address.parse().unwrap(), mask.parse().unwrap()).map(|all| all.to_string())
        };
        assert_eq!(of("10.61.0.2", "255.255.255.0").as_deref(), Some("10.61.0.255"));
        assert_eq!(of("10.61.0.2", "255.255.255.252").as_deref(), Some("10.61.0.3"));
        assert_eq!(of("10.61.0.2", "255.255.255.254"), None);
        assert_eq!(of("10.61.0.2", "255.255.255.255"), None);
    }

    #[test]
    fn this_host_can_be_read() {
        let host = Host::read().unwrap();
        let up = host.macs.iter().any(|(name, mac)| name == "lo" && *mac == [0; 6]);
        let has_loopback = host.owner(Ipv4Addr::LOCALHOST.into()) == Some("lo");
        assert!(!up || has_loopback, "{host:?}");
        assert_eq!(host.owner_of_mac([0; 6]), None);
    }
}
