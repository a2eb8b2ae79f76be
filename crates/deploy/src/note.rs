//! Notes about what is up, but may not work as expected.

use std::fmt;

use packet_traits::attach::{LinkLayer, loses_redirects};
use packet_traits_policy::manifest::Manifest;

use crate::{interface, setup};

/// Something about a policy that came up, which its user may not expect.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// Packets of the interface have no Ethernet header, and rules test it.
    NeverHolds {
        /// The interface.
        interface: String,
    },
    /// Native XDP programs redirect packets to interfaces whose drivers do not send them.
    LostRedirects {
        /// The interfaces.
        interfaces: Vec<String>,
    },
    /// Rules name an interface that does not exist yet.
    MissingInterface {
        /// Its name.
        name: String,
    },
}

impl Note {
    /// Rules that never hold at this interface.
    pub(crate) fn never_holds(manifest: &Manifest, interface: u32, name: &str) -> Option<Note> {
        let bare = manifest.tests_ethernet && LinkLayer::of(interface).is_ok_and(|layer| layer == LinkLayer::None);
        bare.then(|| Note::NeverHolds { interface: name.to_owned() })
    }

    /// Interfaces that lose what XDP in native mode redirects to them.
    pub(crate) fn lost_redirects(manifest: &Manifest) -> Option<Note> {
        let interfaces: Vec<String> = setup::redirect_targets(manifest)
            .filter(|(_, index)| loses_redirects(*index))
            .map(|(name, _)| name.to_owned())
            .collect();
        (!interfaces.is_empty()).then_some(Note::LostRedirects { interfaces })
    }

    /// Interfaces that rules name and that do not exist. The rules match once they do.
    pub(crate) fn missing_interfaces(manifest: &Manifest) -> impl Iterator<Item = Note> {
        let names = manifest.interfaces.iter().map(|interface| interface.name.as_str());
        names
            .filter(|name| interface::index(name).is_err())
            .map(|name| Note::MissingInterface { name: name.to_owned() })
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::NeverHolds { interface } => write!(
                f,
                "packets of {interface} have no Ethernet header: rules that test `ether` or `vlan` never hold there"
            ),
            Note::LostRedirects { interfaces } => write!(
                f,
                "packets that native XDP redirects to {} are lost: its driver does not send them (a veth's does if its other \
                 end has GRO, `ethtool -K PEER gro on`); generic mode delivers them",
                interfaces.join(", ")
            ),
            Note::MissingInterface { name } => {
                write!(f, "there is no interface {name} now: rules that name it match once there is")
            }
        }
    }
}
