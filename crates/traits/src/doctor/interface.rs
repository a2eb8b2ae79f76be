//! The host's interfaces, by asking only: nothing is attached, detached or changed here, except in [`try_interface`].

use std::{ffi::CStr, io, mem, os::fd::AsRawFd, thread, time::Duration};

use super::{Finding, Probe, netdev, room::Room};
use crate::attach::{NATIVE_AT_VETH, XdpMode, interface_index, interface_name, is_veth, udp_socket, xdp};

/// How long packets are waited for on an interface that is in use.
const WAIT: Duration = Duration::from_millis(500);

// include/uapi/linux/ethtool.h
const ETHTOOL_GDRVINFO: u32 = 0x3;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETH_FLAG_LRO: u32 = 1 << 15;

/// An interface of the calling thread's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Interface {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
}

impl Interface {
    /// The interface with this name; `None` if there is none.
    pub fn named(name: &str) -> Option<Interface> {
        Some(Interface { ifindex: interface_index(name)?, name: name.to_owned() })
    }

    /// All that are up, but for loopback, in the order of their indices.
    ///
    /// # Errors
    /// Those of asking the kernel.
    pub fn all() -> io::Result<Vec<Interface>> {
        // SAFETY: takes nothing; null or a list that is freed below.
        let list = unsafe { libc::if_nameindex() };
        if list.is_null() {
            return Err(io::Error::last_os_error());
        }
        let mut found = Vec::new();
        let mut entry = list;
        // SAFETY: the list ends with an entry of index 0, and its names are NUL-terminated (if_nameindex(3)).
        unsafe {
            while (*entry).if_index != 0 {
                let name = CStr::from_ptr((*entry).if_name).to_string_lossy().into_owned();
                found.push(Interface { ifindex: (*entry).if_index, name });
                entry = entry.add(1);
            }
            libc::if_freenameindex(list);
        }
        found.retain(|interface| interface.is_used().unwrap_or(false));
        found.sort_by_key(|interface| interface.ifindex);
        Ok(found)
    }

    fn is_used(&self) -> io::Result<bool> {
        let mut request = request(&self.name)?;
        let socket = udp_socket()?;
        // SAFETY: reads the name and writes the flags of the ifreq.
        if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: SIOCGIFFLAGS has filled this member of the union.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        Ok(flags & (libc::IFF_UP | libc::IFF_LOOPBACK) == libc::IFF_UP)
    }
}

/// Asks the kernel about an interface. Nothing is changed.
pub fn interface(interface: &Interface) -> Vec<Finding> {
    let features = netdev::device(interface.ifindex);
    let found = [
        driver(interface),
        attached(interface),
        native(interface, &features),
        hints(&features),
        switch(interface, Probe::Gro, ETHTOOL_GGRO, 1),
        switch(interface, Probe::Lro, ETHTOOL_GFLAGS, ETH_FLAG_LRO),
    ];
    found.into_iter().map(|finding| finding.on(&interface.name)).collect()
}

/// Attaches a program to an interface for a moment, in native and then in generic mode, and measures the room in front of
/// packets that come in within half a second of each. An interface that has an XDP program is left alone.
///
/// Some drivers reset the link when a native program comes or goes, or need more rings or a smaller MTU for it.
pub fn try_interface(interface: &Interface) -> Vec<Finding> {
    let modes = [XdpMode::Native, XdpMode::Generic];
    let all = |mode| [Probe::Xdp(mode), Probe::Metadata(mode), Probe::Headroom(mode)];
    let untried =
        |why: &str| modes.iter().flat_map(|mode| all(*mode)).map(|probe| Finding::untried(probe, why)).collect();
    let found: Vec<Finding> = match (xdp::attached(interface.ifindex), Room::load()) {
        (Some((id, _)), _) => untried(&format!("program {id} is attached, and is left alone")),
        (None, Err(why)) => untried(&why),
        (None, Ok(room)) => modes.iter().flat_map(|mode| try_mode(interface, &room, *mode)).collect(),
    };
    found.into_iter().map(|finding| finding.on(&interface.name)).collect()
}

fn try_mode(interface: &Interface, room: &Room, mode: XdpMode) -> Vec<Finding> {
    let mut came_up = false;
    let findings = room.findings(interface.ifindex, mode, || {
        came_up = true;
        thread::sleep(WAIT);
        Ok(())
    });
    let mode_found = match (came_up, &findings[0].found) {
        (true, _) => Finding::yes(Probe::Xdp(mode), ""),
        (false, why) => Finding::no(Probe::Xdp(mode), why).with_next(match mode {
            XdpMode::Generic => "",
            _ => "use `--mode generic`, or change what the driver objects to",
        }),
    };
    [mode_found].into_iter().chain(findings).collect()
}

fn driver(interface: &Interface) -> Finding {
    let probe = Probe::Driver;
    // `struct ethtool_drvinfo`: the command, and the driver's name in 32 bytes; 196 bytes in all
    let mut info = [0u32; 49];
    info[0] = ETHTOOL_GDRVINFO;
    match ethtool(interface, info.as_mut_ptr().cast()) {
        Ok(()) => {
            let bytes: Vec<u8> = info[1..9].iter().flat_map(|word| word.to_ne_bytes()).collect();
            let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            Finding::info(probe, String::from_utf8_lossy(name))
        }
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Finding::info(probe, "not told"),
        Err(error) => Finding::untried(probe, error),
    }
}

fn attached(interface: &Interface) -> Finding {
    match xdp::in_the_way(interface.ifindex) {
        None => Finding::info(Probe::XdpAttached, "none"),
        Some(xdp::Attached { ifindex, program, mode }) => {
            let mut text = format!("program {program}, {mode}");
            if ifindex != interface.ifindex {
                let above = interface_name(ifindex).unwrap_or_default();
                text = format!("none, and there can be none: {above}, which stands on it, has {text}");
            }
            Finding::limited(Probe::XdpAttached, text).with_number(program.into())
        }
    }
}

// include/uapi/linux/netdev.h, enum netdev_xdp_act
const ACTIONS: [(u64, &str); 7] = [
    (1 << 0, "basic"),
    (1 << 1, "redirect"),
    (1 << 2, "ndo-xmit"),
    (1 << 3, "xsk-zerocopy"),
    (1 << 4, "hw-offload"),
    (1 << 5, "frags"),
    (1 << 6, "frags-xmit"),
];

// enum netdev_xdp_rx_metadata
const HINTS: [(u64, &str); 3] = [(1 << 0, "timestamp"), (1 << 1, "hash"), (1 << 2, "vlan")];

fn native(interface: &Interface, features: &Result<netdev::Device, String>) -> Finding {
    let probe = Probe::XdpFeatures;
    match features {
        Ok(device) if device.xdp & netdev::XDP_BASIC != 0 && is_veth(interface.ifindex) => {
            Finding::yes(probe, named(device.xdp, &ACTIONS)).with_next(NATIVE_AT_VETH)
        }
        Ok(device) if device.xdp & netdev::XDP_BASIC != 0 => Finding::yes(probe, named(device.xdp, &ACTIONS)),
        Ok(_) => Finding::limited(probe, "generic mode only"),
        Err(why) => Finding::untried(probe, why).with_next("`--try` attaches a program to find out"),
    }
}

fn hints(features: &Result<netdev::Device, String>) -> Finding {
    match features {
        Ok(netdev::Device { hints: 0, .. }) => Finding::info(Probe::Hints, "none"),
        Ok(device) => Finding::yes(Probe::Hints, named(device.hints, &HINTS)),
        Err(why) => Finding::untried(Probe::Hints, why),
    }
}

fn named(bits: u64, names: &[(u64, &str)]) -> String {
    let names: Vec<&str> = names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect();
    names.join(", ")
}

/// Something that ethtool shows as on or off.
fn switch(interface: &Interface, probe: Probe, command: u32, bit: u32) -> Finding {
    let mut value = [command, 0];
    match ethtool(interface, value.as_mut_ptr().cast()) {
        Err(error) => Finding::untried(probe, error),
        Ok(()) => match (value[1] & bit != 0, probe) {
            (true, Probe::Lro) => {
                Finding::limited(probe, "on").with_next(format!("`ethtool -K {} lro off`", interface.name))
            }
            (true, _) => Finding::info(probe, "on"),
            (false, _) => Finding::info(probe, "off"),
        },
    }
}

/// Runs an ethtool command. `data` begins with the command and is as long as it writes.
fn ethtool(interface: &Interface, data: *mut libc::c_char) -> io::Result<()> {
    let mut request = request(&interface.name)?;
    request.ifr_ifru.ifru_data = data;
    let socket = udp_socket()?;
    // SAFETY: the ifreq points to what the command writes, as the caller guarantees.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } {
        error if error < 0 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// An interface request with this name, everything else zero.
fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: plain data, for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}
