//! A frame that is redirected to an AF_XDP socket has its traits in front of it, where user space reads them.

mod common;

use std::{
    collections::BTreeMap,
    net::UdpSocket,
    os::fd::{AsFd, AsRawFd},
};

use common::{
    BOTH_MODES, Lab, TEST_PORT, attach_xdp, name,
    record::{HAS_ALL, Records, Stage, Traits},
    register_record_keys,
};
use libbpf_rs::{MapCore, MapFlags};
use packet_traits::{
    Key, Layout, PacketRegion, TraitsMut, TraitsView, ViewError, attach::XdpMode, bind::LoadedObject, layout::Region,
};
use packet_traits_lab::{AF_XDP_FRAMES, AfXdp, AfXdpFrame, Family, Pair, number_of, send_numbered, udp_socket};

const PACKETS: u64 = 200;

struct Scene {
    lab: Lab,
    object: LoadedObject,
    pair: Pair,
    family: Family,
    socket: AfXdp,
    sender: UdpSocket,
}

impl Scene {
    fn new(family: Family, layout: Layout) -> Scene {
        let lab = Lab::empty(layout);
        register_record_keys(&lab.registry);
        let object = lab.load("af_xdp");
        let pair = Pair::new().unwrap();
        let socket = AfXdp::bind(pair.rx(), 0, layout.area_len()).unwrap();
        let entry = socket.as_fd().as_raw_fd().to_ne_bytes();
        object.map("sockets").unwrap().update(&0u32.to_ne_bytes(), &entry, MapFlags::ANY).unwrap();
        let sender = udp_socket(pair.tx().netns(), pair.tx().addr(family, 0)).unwrap();
        Scene { lab, object, pair, family, socket, sender }
    }

    /// Sends datagrams, one at a time, through an XDP program, and gives each frame to `check` before it is handed back
    /// by `give_back`.
    fn exchange(
        &mut self,
        (program, mode): (&str, XdpMode),
        numbers: std::ops::Range<u64>,
        give_back: impl Fn(&mut [u8]),
        mut check: impl FnMut(u64, &Scene, &AfXdpFrame),
    ) {
        let _xdp = attach_xdp(&self.object, program, self.pair.rx(), mode);
        let to = self.pair.rx().addr(self.family, TEST_PORT);
        let payload = if self.family == Family::V4 { 14 + 20 + 8 } else { 14 + 40 + 8 };
        for number in numbers {
            send_numbered(&self.sender, to, number..number + 1, 64).unwrap();
            let frame = self.socket.recv(&give_back).unwrap();
            assert_eq!(number_of(&frame.packet[payload..]), Some(number), "the frame starts at its Ethernet header");
            check(number, self, &frame);
        }
    }

    fn layout(&self) -> Layout {
        self.lab.registry.layout()
    }

    fn view<'f>(&self, frame: &'f AfXdpFrame) -> Result<TraitsView<'f>, ViewError> {
        TraitsView::open(&frame.in_front, &self.layout(), &self.lab.registry.nonces())
    }

    fn key(&self, key: &str) -> Key {
        self.lab.registry.lookup(&name(key)).unwrap().unwrap().key
    }

    /// The values of all keys; `None` if one is not set.
    fn traits(&self, view: &TraitsView<'_>) -> Option<Traits> {
        fn value<const N: usize>(scene: &Scene, view: &TraitsView<'_>, key: &str) -> Option<[u8; N]> {
            Some(view.bytes(&scene.key(key))?.try_into().unwrap())
        }
        value::<0>(self, view, "marked")?;
        Some(Traits {
            seq: u64::from_ne_bytes(value(self, view, "seq")?),
            rx_ts: u64::from_ne_bytes(value(self, view, "rx_ts")?),
            src: value(self, view, "src")?,
            tenant: view.get(&self.key("tenant").typed::<u32>().unwrap())?,
            port: view.get(&self.key("port").typed::<u16>().unwrap())?,
            tiny: view.get(&self.key("tiny").typed::<u8>().unwrap())?,
        })
    }

    /// What XDP has set, by packet number.
    fn set(&self, packets: u64) -> BTreeMap<u64, Traits> {
        let records = Records::collect(&self.object, |r| r.count(Stage::Xdp) >= packets as usize);
        records.at(Stage::Xdp).for_each(|record| assert_eq!(record.present, HAS_ALL));
        records.set()
    }
}

fn keep(_: &mut [u8]) {}

fn each(layout: Layout, test: impl Fn(Scene, XdpMode)) {
    if common::area_enabled() {
        for mode in BOTH_MODES {
            for family in Family::BOTH {
                test(Scene::new(family, layout), mode);
            }
        }
    }
}

fn all_traits_are_read(mut scene: Scene, mode: XdpMode) {
    let mut read = BTreeMap::new();
    scene.exchange(("with_traits", mode), 0..PACKETS, keep, |number, scene, frame| {
        let view = scene.view(frame).unwrap();
        assert_eq!(view.packet_region(), PacketRegion::Open);
        read.insert(number, scene.traits(&view).expect("all keys are set"));
    });
    assert_eq!(read, scene.set(PACKETS));
}

#[test]
fn user_space_reads_all_traits_in_front_of_the_frame() {
    each(Layout::DEFAULT, all_traits_are_read);
}

/// 216 bytes: the most that native XDP on a veth has room for.
#[test]
fn the_largest_area_is_copied_whole() {
    each(Layout::new(112, 104).unwrap(), all_traits_are_read);
}

/// The kernel copies the metadata, and a sealed packet region is not in it.
#[test]
fn a_sealed_area_arrives_without_its_packet_region() {
    each(Layout::DEFAULT, |mut scene, mode| {
        let mut tenants = BTreeMap::new();
        scene.exchange(("with_traits_sealed", mode), 0..PACKETS, keep, |number, scene, frame| {
            let view = scene.view(frame).unwrap();
            assert_eq!((view.packet_region(), view.present(Region::Packet)), (PacketRegion::Absent, 0));
            assert!(["seq", "rx_ts", "src", "tiny"].iter().all(|key| !view.is_set(&scene.key(key))));
            assert!(view.is_set(&scene.key("marked")));
            tenants.insert(number, view.get(&scene.key("tenant").typed::<u32>().unwrap()).unwrap());
        });
        let set = scene.set(PACKETS).into_iter().map(|(number, traits)| (number, traits.tenant)).collect();
        assert_eq!(tenants, set);
    });
}

#[test]
fn a_frame_of_a_program_without_traits_has_none() {
    each(Layout::DEFAULT, |mut scene, mode| {
        scene.exchange(("untouched", mode), 0..PACKETS, keep, |_, scene, frame| {
            assert_eq!(scene.view(frame).unwrap_err(), ViewError::Nonce);
        });
    });
}

#[test]
fn another_registry_reads_nothing_in_front_of_the_frame() {
    each(Layout::DEFAULT, |mut scene, mode| {
        let other = scene.lab.another("other", Layout::DEFAULT);
        scene.exchange(("with_traits", mode), 0..PACKETS, keep, |_, scene, frame| {
            assert!(scene.view(frame).is_ok());
            let view = TraitsView::open(&frame.in_front, &other.layout(), &other.nonces());
            assert_eq!(view.unwrap_err(), ViewError::Nonce);
        });
    });
}

/// Fills every frame with traits, hands them back by `give_back`, and fills them again through `program`.
fn fill_twice(
    (mut scene, mode): (Scene, XdpMode),
    give_back: impl Fn(&mut [u8], &Layout),
    program: &str,
    check: impl Fn(u64, &Scene, &AfXdpFrame),
) {
    let (layout, frames) = (scene.layout(), u64::from(AF_XDP_FRAMES));
    scene.exchange(
        ("with_traits", mode),
        0..frames,
        |bytes| give_back(bytes, &layout),
        |_, scene, frame| {
            assert!(scene.traits(&scene.view(frame).unwrap()).is_some());
        },
    );
    scene.exchange((program, mode), frames..2 * frames, keep, check);
}

/// Why frames must be erased: the kernel says nothing of metadata to user space, and does not clear the memory.
#[test]
fn a_frame_that_is_filled_again_shows_its_earlier_packets_traits() {
    each(Layout::DEFAULT, |scene, mode| {
        fill_twice(
            (scene, mode),
            |_, _| (),
            "untouched",
            |number, scene, frame| {
                let earlier = scene.traits(&scene.view(frame).unwrap()).unwrap();
                assert!(earlier.seq < u64::from(AF_XDP_FRAMES) && earlier.seq != number);
            },
        );
    });
}

#[test]
fn an_erased_frame_does_not_show_its_earlier_packets_traits() {
    each(Layout::DEFAULT, |scene, mode| {
        fill_twice((scene, mode), TraitsMut::erase, "untouched", |_, scene, frame| {
            assert_eq!(scene.view(frame).unwrap_err(), ViewError::Nonce);
        });
    });
    each(Layout::DEFAULT, |scene, mode| {
        fill_twice((scene, mode), TraitsMut::erase, "with_traits_sealed", |_, scene, frame| {
            assert_eq!(scene.view(frame).unwrap().packet_region(), PacketRegion::Absent);
        });
    });
}

#[test]
fn an_area_that_xdp_reserves_replaces_the_earlier_packets_traits() {
    each(Layout::DEFAULT, |scene, mode| {
        fill_twice(
            (scene, mode),
            |_, _| (),
            "with_empty_area",
            |_, scene, frame| {
                let view = scene.view(frame).unwrap();
                assert_eq!(view.packet_region(), PacketRegion::Open);
                assert_eq!((view.present(Region::Flow), view.present(Region::Packet)), (0, 0));
            },
        );
    });
}
