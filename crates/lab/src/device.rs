//! One interface of a namespace, by name: index, counters, offload switches and sysfs attributes.

use std::fs;
use std::net::Ipv6Addr;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::RECV_TIMEOUT;
use crate::error::{Context, Error, Result};
use crate::netns::Netns;
use crate::sys;
use packet_traits_core::Mac;

/// Packet counters of an interface since it was made (`/proc/net/dev`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received, before XDP.
    pub rx_packets: u64,
    /// Packets received with errors.
    pub rx_errors: u64,
    /// Packets dropped on receive, also by XDP.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent; a GSO packet is one.
    pub tx_packets: u64,
    /// Packets not sent because of errors.
    pub tx_errors: u64,
    /// Packets dropped on send.
    pub tx_dropped: u64,
}

/// An offload that can be switched per interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Checksums verified by the device on receive.
    RxChecksum,
    /// Checksums left to the device on send. Off makes frames carry right checksums on a veth; it takes
    /// [`Feature::Tso`] with it.
    TxChecksum,
    /// TCP segmentation left to the device. Off makes the stack cut frames of the MTU's size before the veth.
    Tso,
    /// Segmentation as late as possible in the stack.
    Gso,
    /// Merging of packets on receive. Off by default on a veth; [`VethOptions::gro`](crate::VethOptions::gro) has what
    /// it takes to use it there.
    Gro,
}

impl Feature {
    /// The ethtool commands that read and write the feature (`ETHTOOL_G…`, `ETHTOOL_S…` in
    /// include/uapi/linux/ethtool.h).
    fn commands(self) -> (u32, u32) {
        match self {
            Self::RxChecksum => (0x14, 0x15),
            Self::TxChecksum => (0x16, 0x17),
            Self::Tso => (0x1e, 0x1f),
            Self::Gso => (0x23, 0x24),
            Self::Gro => (0x2b, 0x2c),
        }
    }
}

impl Netns {
    /// The index of interface `device`, unique within the namespace only.
    ///
    /// # Errors
    /// ENODEV if there is no such interface.
    pub fn ifindex(&self, device: &str) -> Result<u32> {
        self.enter(|| sys::interface_index(device)).context(|| format!("cannot get the index of interface {device}"))
    }

    /// The counters of interface `device`.
    ///
    /// # Errors
    /// There is no such interface, or `/proc` is not mounted.
    pub fn link_stats(&self, device: &str) -> Result<LinkStats> {
        let what = || format!("cannot read the counters of interface {device}");
        let table = self.enter(|| fs::read_to_string("/proc/thread-self/net/dev")).context(what)?;
        parse_stats(&table, device).ok_or_else(|| Error::other(what(), "there is no such interface"))
    }

    /// The names of all interfaces of the namespace, `lo` included.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn interfaces(&self) -> Result<Vec<String>> {
        let table =
            self.enter(|| fs::read_to_string("/proc/thread-self/net/dev")).context(|| "cannot list the interfaces")?;
        Ok(table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect())
    }

    /// Whether `feature` is on for interface `device`.
    ///
    /// # Errors
    /// ENODEV if there is no such interface.
    pub fn feature(&self, device: &str, feature: Feature) -> Result<bool> {
        let (get, _) = feature.commands();
        let value = self.enter(|| sys::ethtool(device, get, 0));
        value.map(|value| value != 0).context(|| format!("cannot read {feature:?} of interface {device}"))
    }

    /// Switches `feature` of interface `device`, as `ethtool -K` does.
    ///
    /// # Errors
    /// There is no such interface, the device cannot change the feature, or it kept it as it was (veth, for one, keeps
    /// TSO off while the peer has a native XDP program).
    pub fn set_feature(&self, device: &str, feature: Feature, on: bool) -> Result<()> {
        let (_, set) = feature.commands();
        let what = || format!("cannot switch {feature:?} {} for interface {device}", if on { "on" } else { "off" });
        self.enter(|| sys::ethtool(device, set, u32::from(on))).context(what)?;
        if self.feature(device, feature)? == on {
            Ok(())
        } else {
            Err(Error::other(what(), "the device keeps it as it was, another feature or an XDP program needs that"))
        }
    }

    /// The Ethernet address of interface `device`; `None` if it has no Ethernet header (`ARPHRD_ETHER` in
    /// include/uapi/linux/if_arp.h).
    ///
    /// # Errors
    /// There is no such interface.
    pub fn mac(&self, device: &str) -> Result<Option<Mac>> {
        const ARPHRD_ETHER: &str = "1";
        if self.device_attribute(device, "type")? != ARPHRD_ETHER {
            return Ok(None);
        }
        let text = self.device_attribute(device, "address")?;
        let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        let mac = bytes.and_then(|bytes| bytes.try_into().ok()).map(Mac);
        let what = || format!("cannot read the Ethernet address of interface {device}");
        mac.map(Some).ok_or_else(|| Error::other(what(), format!("{text:?} is none")))
    }

    /// Reads a sysfs attribute of interface `device` (a file below `/sys/class/net/<device>/`), without the newline.
    ///
    /// # Errors
    /// There is no such interface or attribute.
    pub fn device_attribute(&self, device: &str, attribute: &str) -> Result<String> {
        let what = || format!("cannot read attribute {attribute} of interface {device}");
        let value = self.in_device_folder(device, |folder| fs::read_to_string(folder.join(attribute))).context(what)?;
        Ok(value.trim_end().to_owned())
    }

    /// Writes a sysfs attribute of interface `device`, such as `gro_flush_timeout` or `threaded`.
    ///
    /// # Errors
    /// There is no such interface or attribute, or the kernel refuses the value.
    pub fn set_device_attribute(&self, device: &str, attribute: &str, value: &str) -> Result<()> {
        self.in_device_folder(device, |folder| fs::write(folder.join(attribute), value))
            .context(|| format!("cannot set attribute {attribute} of interface {device} to {value:?}"))
    }

    /// Has interface `device` rest for `time` after each NAPI poll that found packets (`napi_defer_hard_irqs`,
    /// `gro_flush_timeout`): what arrives in the meantime is received in one poll, where GRO can merge it. Zero, the default,
    /// goes back to polling at once. [`send_together`](crate::send_together) uses it.
    ///
    /// # Errors
    /// There is no such interface, or `time` is above what the kernel takes.
    pub fn defer_receive(&self, device: &str, time: Duration) -> Result<()> {
        self.set_device_attribute(device, "gro_flush_timeout", &time.as_nanos().to_string())?;
        self.set_device_attribute(device, "napi_defer_hard_irqs", if time.is_zero() { "0" } else { "1" })
    }

    /// Waits until interface `device` is up and its carrier is on, which the kernel works out in the background.
    pub(crate) fn wait_running(&self, device: &str) -> Result<()> {
        let what = || format!("cannot bring interface {device} up");
        let deadline = Instant::now() + RECV_TIMEOUT;
        self.enter(|| {
            while !sys::interface_runs(device).context(what)? {
                if Instant::now() > deadline {
                    return Err(Error::timed_out(what(), format!("no carrier after {RECV_TIMEOUT:?}")));
                }
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        })
    }

    /// Waits until packets to an IPv6 address of this namespace are taken in. `ip addr add` returns before: also without
    /// duplicate address detection, the route to the address is added in the background (`addrconf_dad_completed` in
    /// net/ipv6/addrconf.c), and until then they are dropped.
    pub(crate) fn wait_local(&self, address: Ipv6Addr) -> Result<()> {
        let what = || format!("cannot wait for the route to {address}");
        // a line of /proc/net/ipv6_route begins with destination and prefix length, both hexadecimal
        let route = format!("{:032x} 80 ", address.to_bits());
        let deadline = Instant::now() + RECV_TIMEOUT;
        self.enter(|| {
            let routes = || fs::read_to_string("/proc/thread-self/net/ipv6_route").context(what);
            while !routes()?.lines().any(|line| line.starts_with(&route)) {
                if Instant::now() > deadline {
                    return Err(Error::timed_out(what(), format!("it is not there after {RECV_TIMEOUT:?}")));
                }
                thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        })
    }

    /// Calls `f` with the folder of `device` in a sysfs of this namespace. `/sys` shows the interfaces of the namespace
    /// that mounted it, so the folder is in a sysfs of its own, which is mounted nowhere.
    fn in_device_folder<R: Send>(
        &self,
        device: &str,
        f: impl FnOnce(&Path) -> std::io::Result<R> + Send,
    ) -> std::io::Result<R> {
        self.enter(|| {
            let sysfs = sys::detached_mount(c"sysfs")?;
            f(&PathBuf::from(format!("/proc/self/fd/{}/class/net/{device}", sysfs.as_raw_fd())))
        })
    }
}

/// Finds `device` in the text of `/proc/net/dev`: eight receive counters, then eight of transmit.
fn parse_stats(table: &str, device: &str) -> Option<LinkStats> {
    let counters = table.lines().find_map(|line| {
        let (name, counters) = line.split_once(':')?;
        (name.trim() == device).then_some(counters)
    })?;
    let counters: Vec<u64> = counters.split_whitespace().map(|text| text.parse().ok()).collect::<Option<_>>()?;
    let [rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, tx_bytes, tx_packets, tx_errors, tx_dropped, ..] =
        counters[..]
    else {
        return None;
    };
    Some(LinkStats { rx_bytes, rx_packets, rx_errors, rx_dropped, tx_bytes, tx_packets, tx_errors, tx_dropped })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_exact_name() {
        let table = "Inter-| Receive\n face |bytes\n  tx01: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0\n   tx0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n";
        let expected = LinkStats {
            rx_bytes: 1,
            rx_packets: 2,
            rx_errors: 3,
            rx_dropped: 4,
            tx_bytes: 5,
            tx_packets: 6,
            tx_errors: 7,
            tx_dropped: 8,
        };
        assert_eq!(parse_stats(table, "tx0"), Some(expected));
        assert_eq!(parse_stats(table, "tx"), None);
    }
}
