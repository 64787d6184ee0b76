//! librdkafka's consumer group metadata (KIP-447), which a transactional producer sends with consumed offsets.

use super::ffi::c;
use std::ptr::NonNull;

/// librdkafka's group metadata: group, generation, member id and instance name.
#[derive(Debug)]
pub struct ClientGroupMetadata {
    raw: NonNull<c::rd_kafka_consumer_group_metadata_t>,
}

// SAFETY: the object is never modified after its creation.
unsafe impl Send for ClientGroupMetadata {}
// SAFETY: as for `Send`.
unsafe impl Sync for ClientGroupMetadata {}

impl ClientGroupMetadata {
    /// Takes ownership of group metadata; `None` for null.
    ///
    /// # Safety
    /// `raw` is null or valid group metadata that the caller owns.
    pub(super) unsafe fn from_owned(raw: *mut c::rd_kafka_consumer_group_metadata_t) -> Option<ClientGroupMetadata> {
        NonNull::new(raw).map(|raw| ClientGroupMetadata { raw })
    }

    /// Returns the generation id.
    pub fn generation(&self) -> i32 {
        // SAFETY: `self` owns the object.
        unsafe { c::rd_kafka_consumer_group_metadata_generation_id(self.raw.as_ptr()) }
    }

    /// Returns the pointer for librdkafka.
    pub(super) fn raw(&self) -> *const c::rd_kafka_consumer_group_metadata_t {
        self.raw.as_ptr()
    }
}

impl Drop for ClientGroupMetadata {
    fn drop(&mut self) {
        // SAFETY: `self` owns the object and frees it once.
        unsafe { c::rd_kafka_consumer_group_metadata_destroy(self.raw.as_ptr()) };
    }
}
