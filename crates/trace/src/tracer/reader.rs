//! Reading what the programs report. Decoding an event takes the keys and the tracer's run, and nothing else of the tracer.

use std::io;

use libbpf_rs::{MapHandle, RingBuffer, RingBufferBuilder};

use crate::{
    error::{TraceError, libbpf},
    event::{EVENT_LEN, Event},
    keys::Keys,
};

/// Where the programs put events, and what these are decoded by.
pub(super) struct EventSource {
    ring: MapHandle,
    keys: Keys,
    /// The high bits of this tracer's ids; 0 if another program gives the ids.
    run: u64,
    /// How many events fit into the ring buffer.
    at_once: usize,
}

impl EventSource {
    /// `ring_len` is the ring buffer's size in bytes.
    pub(super) fn new(ring: MapHandle, keys: Keys, run: u64, ring_len: usize) -> EventSource {
        EventSource { ring, keys, run, at_once: ring_len / EVENT_LEN + 1 }
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(super) fn reader<'a>(&self, mut sink: impl FnMut(Event<'_>) + 'a) -> Result<Reader<'a>, TraceError> {
        let (keys, run) = (self.keys.clone(), self.run);
        let mut builder = RingBufferBuilder::new();
        builder
            .add(&self.ring, move |raw| {
                if let Some(event) = Event::new(raw, &keys, run) {
                    sink(event);
                }
                0
            })
            .map_err(libbpf("map the ring buffer"))?;
        let ring = builder.build().map_err(libbpf("map the ring buffer"))?;
        Ok(Reader { ring, at_once: self.at_once })
    }
}

/// The reading end of the ring buffer. It maps the buffer itself, so it can still read what was reported when the tracer has
/// ended.
pub struct Reader<'a> {
    ring: RingBuffer<'a>,
    at_once: usize,
}

impl Reader<'_> {
    /// Takes everything that was reported so far, and returns how much that was. It comes back also if events are reported
    /// faster than the sink takes them: no more than a full ring buffer is taken at a time.
    ///
    /// The programs wake nobody, which would cost them more than the rest of their work: read again after a few
    /// milliseconds.
    ///
    /// # Errors
    /// libbpf failed.
    pub fn read(&self) -> Result<usize, TraceError> {
        let count = self.ring.consume_raw_n(self.at_once);
        usize::try_from(count).map_err(|_| TraceError::System {
            action: "read events".to_owned(),
            error: io::Error::from_raw_os_error(-count),
        })
    }
}
