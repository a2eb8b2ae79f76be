//! The places to trace: namespaces, their interfaces, and those of these that have another XDP program.

use packet_traits::{
    attach::{XdpMode, xdp},
    deployment::Location,
    registry::Registry,
};

use super::options::Options;
use crate::{
    error::{TraceError, system},
    namespace::{Namespace, Place, PlaceId, place_id},
};

/// Where is traced, and how the tracer's XDP program is attached there.
pub(super) struct Targets {
    pub(super) namespaces: Vec<Namespace>,
    pub(super) interfaces: Vec<Place>,
    /// The interfaces that have another XDP program, behind which packets get their ids.
    pub(super) occupied: Vec<PlaceId>,
    /// The interfaces were chosen by name.
    pub(super) named: bool,
    pub(super) xdp_mode: XdpMode,
    /// Where deployments are that may stand in the way.
    pub(super) location: Location,
}

impl Targets {
    /// What the options mean.
    pub(super) fn find(registry: &Registry, options: &Options) -> Result<Targets, TraceError> {
        let interfaces = interfaces(options)?;
        Ok(Targets {
            occupied: if options.id.is_none() { occupied(&interfaces)? } else { Vec::new() },
            namespaces: options.namespaces.clone(),
            interfaces,
            named: !options.devices.is_empty(),
            xdp_mode: options.xdp_mode,
            location: Location::from(registry),
        })
    }
}

/// The interfaces that the options name.
fn interfaces(options: &Options) -> Result<Vec<Place>, TraceError> {
    let mut found = Vec::new();
    for namespace in &options.namespaces {
        for interface in namespace.interfaces().map_err(system("list interfaces"))? {
            let wanted = match &options.devices[..] {
                [] => interface.up && !interface.loopback,
                devices => devices.contains(&interface.name),
            };
            if wanted {
                found.push((namespace.clone(), interface));
            }
        }
    }
    let missing = options.devices.iter().find(|device| !found.iter().any(|(_, found)| found.name == **device));
    if let Some(device) = missing {
        return Err(TraceError::NoInterface { name: device.clone() });
    }
    if found.is_empty() {
        return Err(TraceError::NothingUp);
    }
    Ok(found)
}

/// Those that have another XDP program.
fn occupied(places: &[Place]) -> Result<Vec<PlaceId>, TraceError> {
    let mut found = Vec::new();
    for place @ (namespace, interface) in places {
        let theirs = namespace.enter(|| xdp::attached(interface.index));
        if theirs.map_err(system("enter a network namespace"))?.is_some() {
            found.push(place_id(place));
        }
    }
    Ok(found)
}
