//! The machine code of a component.
//!
//! A program without a compiler (without the feature `compiler`) loads code that another Refit compiled and [`super::cache`]
//! stored.

use bytes::Bytes;
use wasmtime::Engine;
use wasmtime::component::Component;

/// The largest machine code. A Python policy of 18 MB compiled to 34 MB, a JavaScript policy of 12 MB to 36 MB.
pub(super) const COMPILED_BYTES_MAX: usize = 256 << 20;

/// Machine code for a component. It comes from our own compiler or from a cache entry whose seal matched, and from nowhere else.
pub(super) struct Compiled(Bytes);

impl Compiled {
    #[cfg(feature = "compiler")]
    pub(super) fn compile(engine: &Engine, bytes: &[u8]) -> wasmtime::Result<Self> {
        engine
            .precompile_component(bytes)
            .map(|code| Self(code.into()))
    }

    /// The code that a worker of this process wrote.
    #[cfg(feature = "compiler")]
    pub(super) fn from_worker(code: Bytes) -> Self {
        Self(code)
    }

    /// The code of a cache entry whose seal matched: the bytes that [`Compiled::code`] gave to the cache.
    pub(super) fn unsealed(code: Bytes) -> Self {
        Self(code)
    }

    pub(super) fn code(&self) -> &Bytes {
        &self.0
    }

    /// Load the code into the engine. wasmtime checks whether it was compiled by this version of wasmtime for this machine and
    /// these settings; it does not check for tampering.
    #[expect(
        unsafe_code,
        reason = "machine code cannot be checked, only traced to where it came from"
    )]
    pub(super) fn adopt(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // SAFETY: `deserialize` requires bytes that a wasmtime compiler has written and nobody has changed since. A `Compiled` is
        // made in three places: from `precompile_component` here; from the pipe of our own program, which we started to do the
        // same; from a cache entry that carries an HMAC over exactly these bytes, under a key that only this user can read. No
        // input of an operator or a guest becomes one (`error::admit` refuses precompiled files), and the bytes are in our memory,
        // where no other process changes them between the check and the use.
        unsafe { Component::deserialize(engine, &self.0) }
    }
}
