//! What happens in a namespace stays there, and what is refused is explained.

use std::fs;
use std::time::Duration;

use packet_traits_lab::{Feature, Netns, Pair, kernel_tests_enabled};

#[test]
fn namespaces_do_not_see_each_other() {
    if !kernel_tests_enabled() {
        return;
    }
    let before = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let pairs = [Pair::new().unwrap(), Pair::new().unwrap()];
    for pair in &pairs {
        assert_eq!(pair.tx().netns().interfaces().unwrap(), ["lo", "tx0"]);
        assert_eq!(pair.rx().netns().interfaces().unwrap(), ["lo", "rx0"]);
        assert_eq!(pair.rx().netns().ifindex("rx0").unwrap(), pair.rx().ifindex());
    }
    assert!(!before.contains("tx0:"));
    assert!(!fs::read_to_string("/proc/thread-self/net/dev").unwrap().contains("tx0:"));
}

#[test]
fn sysctl_is_set_inside_the_namespace_only() {
    if !kernel_tests_enabled() {
        return;
    }
    const TTL: &str = "net/ipv4/ip_default_ttl";
    let host = || fs::read_to_string(format!("/proc/sys/{TTL}")).unwrap();
    let before = host();
    let (changed, other) = (Netns::new().unwrap(), Netns::new().unwrap());
    changed.set_sysctl(TTL, "17").unwrap();
    assert_eq!(changed.sysctl(TTL).unwrap(), "17");
    assert_eq!(other.sysctl(TTL).unwrap(), "64");
    assert_eq!(host(), before);
}

#[test]
fn sysctl_of_the_host_is_refused() {
    if !kernel_tests_enabled() {
        return;
    }
    let netns = Netns::new().unwrap();
    for path in ["kernel/panic", "net/../kernel/panic", "/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward"] {
        let error = netns.set_sysctl(path, "0").unwrap_err().to_string();
        assert!(error.contains("only paths below net/"), "{path}: {error}");
    }
}

#[test]
fn commands_run_inside_and_keep_the_host_sysfs() {
    if !kernel_tests_enabled() {
        return;
    }
    let pair = Pair::new().unwrap();
    let output =
        pair.tx().netns().command("cat").args(["/proc/self/net/dev", "/proc/self/mountinfo"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("tx0:"), "{text}");
    assert!(text.ends_with(&fs::read_to_string("/proc/self/mountinfo").unwrap()));
}

#[test]
fn command_dies_with_the_thread_that_started_it() {
    if !kernel_tests_enabled() {
        return;
    }
    let netns = Netns::new().unwrap();
    let start = || netns.command("sleep").arg("1000").spawn().unwrap();
    let mut child = std::thread::scope(|scope| scope.spawn(start).join().unwrap());
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
}

#[test]
fn panic_inside_reaches_the_caller() {
    if !kernel_tests_enabled() {
        return;
    }
    let netns = Netns::new().unwrap();
    let caught = std::panic::catch_unwind(|| netns.enter(|| std::panic::panic_any(7_u8)));
    assert_eq!(*caught.unwrap_err().downcast::<u8>().unwrap(), 7);
}

#[test]
fn refused_ip_command_is_named_with_the_reason() {
    if !kernel_tests_enabled() {
        return;
    }
    let netns = Netns::new().unwrap();
    let single = netns.ip("link set nosuch up").unwrap_err().to_string();
    assert_eq!(single, "`ip link set nosuch up` failed: Cannot find device \"nosuch\"");
    let batch = netns.ip("link set lo up\nlink set nosuch up\nlink set lo down").unwrap_err().to_string();
    assert!(batch.starts_with("`ip link set nosuch up` failed: Cannot find device"), "{batch}");
    let index = netns.ifindex("nosuch").unwrap_err();
    assert_eq!(index.errno(), Some(libc::ENODEV), "{index}");
}

#[test]
fn offloads_can_be_switched() {
    if !kernel_tests_enabled() {
        return;
    }
    let pair = Pair::new().unwrap();
    let (netns, device) = (pair.rx().netns(), pair.rx().name());
    for feature in [Feature::Gro, Feature::Tso, Feature::Gso, Feature::TxChecksum] {
        for on in [true, false, true] {
            netns.set_feature(device, feature, on).unwrap();
            assert_eq!(netns.feature(device, feature).unwrap(), on, "{feature:?}");
        }
    }
    let error = netns.set_feature("nosuch", Feature::Gro, true).unwrap_err().to_string();
    assert!(error.starts_with("cannot switch Gro on for interface nosuch: No such device"), "{error}");
}

#[test]
fn device_attributes_belong_to_the_namespace() {
    if !kernel_tests_enabled() {
        return;
    }
    let pair = Pair::new().unwrap();
    let rx = pair.rx();
    rx.netns().defer_receive(rx.name(), Duration::from_millis(2)).unwrap();
    assert_eq!(rx.netns().device_attribute(rx.name(), "gro_flush_timeout").unwrap(), "2000000");
    assert_eq!(rx.netns().device_attribute(rx.name(), "address").unwrap(), rx.mac().to_string());
    assert!(pair.tx().netns().device_attribute(rx.name(), "address").is_err());
}
