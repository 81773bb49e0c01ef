//! Machine code of a component.
//!
//! A program without a compiler (the feature `compiler`) takes what another Refit compiled and [`super::cache`] kept.

use bytes::Bytes;
use wasmtime::Engine;
use wasmtime::component::Component;

/// Machine code of a component. A Python policy of 18 MB made 34 MB, a JavaScript one of 12 MB 36 MB.
pub(super) const COMPILED_BYTES_MAX: usize = 256 << 20;

/// Machine code for a component. Made by our own compiler, or read from a cache whose seal held; by nothing else.
pub(super) struct Compiled(Bytes);

impl Compiled {
    #[cfg(feature = "compiler")]
    pub(super) fn compile(engine: &Engine, bytes: &[u8]) -> wasmtime::Result<Self> {
        engine
            .precompile_component(bytes)
            .map(|code| Self(code.into()))
    }

    /// What a worker wrote that this process started.
    #[cfg(feature = "compiler")]
    pub(super) fn from_worker(code: Bytes) -> Self {
        Self(code)
    }

    /// Of bytes whose seal was found whole: they are what [`Compiled::code`] gave to the cache.
    pub(super) fn unsealed(code: Bytes) -> Self {
        Self(code)
    }

    pub(super) fn code(&self) -> &Bytes {
        &self.0
    }

    /// Makes it callable. Whether it was compiled by this version of wasmtime for this machine and these settings, wasmtime
    /// looks at itself; whether it was tampered with, it does not.
    #[expect(
        unsafe_code,
        reason = "machine code cannot be checked, only traced to where it came from"
    )]
    pub(super) fn adopt(&self, engine: &Engine) -> wasmtime::Result<Component> {
        // SAFETY: `deserialize` asks for bytes that a wasmtime compiler has put out and nobody has changed since. A `Compiled`
        // is made in three places: from `precompile_component` here; from the pipe of our own program, started by us to do
        // the same; from a cache entry that carries an HMAC over exactly these bytes, under a key that only this user can
        // read. Nothing that an operator or a guest hands in becomes one (`error::admit` refuses precompiled files), and the
        // bytes are in our memory, where no other process changes them between the check and the use.
        unsafe { Component::deserialize(engine, &self.0) }
    }
}
