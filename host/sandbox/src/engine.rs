//! The way from a component's bytes to a policy that can be called: examined, compiled or recalled, linked, introduced.
//!
//! Knows nothing of refreshes. What a policy is called with, and what becomes of its answers, is [`super::Policy`]'s.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::{Component, Linker};

use super::bindings::{self, RefreshPolicyPre};
use super::cache::{self, Cache};
use super::compile::Compiled;
use super::instance::HostState;
use super::isolation::Isolation;
use super::limits::Times;
use super::{Examined, Metering, Policy, PolicyError, Task, configuration, tick, wasi};

/// Compiles and links. One per process: its clock is a thread.
pub struct PolicyEngine {
    engine: Engine,
    /// What the host offers to guests.
    linker: Linker<HostState>,
    isolation: Isolation,
    cache: Option<Arc<Cache>>,
    times: Times,
    metering: Metering,
}

/// A component that was compiled, and is not linked yet.
pub struct CompiledPolicy {
    examined: Examined,
    component: Component,
}

/// A component that fits what this host offers, and has not been called yet.
pub struct LinkedPolicy(Policy);

fn linker(engine: &Engine) -> wasmtime::Result<Linker<HostState>> {
    let mut linker = Linker::new(engine);
    wasi::link(&mut linker)?;
    bindings::RefreshPolicy::add_to_linker::<_, wasmtime::component::HasSelf<_>>(
        &mut linker,
        |state: &mut HostState| state,
    )?;
    Ok(linker)
}

impl PolicyEngine {
    /// Compiles in this process, where there is a compiler, and keeps nothing.
    pub fn new() -> Result<Self, PolicyError> {
        Self::with_times(Times::default())
    }

    /// The same with other times, for tests that cross them.
    pub fn with_times(times: Times) -> Result<Self, PolicyError> {
        Self::make(times, Metering::Off)
    }

    /// One whose policies tell [`Cost::instructions`](super::Cost::instructions).
    pub fn metering() -> Result<Self, PolicyError> {
        Self::make(Times::default(), Metering::Instructions)
    }

    fn make(times: Times, metering: Metering) -> Result<Self, PolicyError> {
        let engine = Engine::new(&configuration(metering)).map_err(PolicyError::host)?;
        let linker = linker(&engine).map_err(PolicyError::host)?;
        tick(&engine);
        Ok(Self {
            engine,
            linker,
            isolation: Isolation::default(),
            cache: None,
            times,
            metering,
        })
    }

    #[must_use]
    pub fn with_isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// Keeps what it compiled in this folder, which should be nobody else's. See `cache`.
    #[must_use]
    pub fn cached_in(mut self, folder: PathBuf) -> Self {
        self.cache = Some(Arc::new(Cache::in_folder(folder)));
        self
    }

    /// All of the way, from bytes to a policy that can be called. `origin` says where they came from, for people.
    pub async fn load(&self, bytes: impl Into<Bytes>, origin: &str) -> Result<Policy, PolicyError> {
        let examined = self.examine(bytes.into(), origin).await?;
        self.check_contract(&examined)?;
        let compiled = self.compile(examined).await?;
        self.introduce(self.link(compiled)?).await
    }

    /// Whether the bytes are a valid component, and what it wants. Nothing of it is compiled or runs.
    pub async fn examine(&self, bytes: Bytes, origin: &str) -> Result<Examined, PolicyError> {
        self.isolation.examine(bytes, origin).await
    }

    /// Whether it speaks our contract, and imports nothing else.
    pub fn check_contract(&self, examined: &Examined) -> Result<(), PolicyError> {
        examined.check_contract()
    }

    /// From the cache, or by the compiler: from a tenth of a second (Rust) to many seconds (Python).
    pub async fn compile(&self, examined: Examined) -> Result<CompiledPolicy, PolicyError> {
        let component = match self.recall(&examined).await {
            Some(component) => component,
            None => {
                let code = self.make_code(&examined).await?;
                self.keep(&examined, &code).await;
                self.adopt(code).await?
            }
        };
        Ok(CompiledPolicy {
            examined,
            component,
        })
    }

    #[cfg(feature = "compiler")]
    async fn make_code(&self, examined: &Examined) -> Result<Compiled, PolicyError> {
        let (engine, origin) = (&self.engine, &examined.origin);
        self.isolation
            .compile(engine, self.metering, &examined.bytes, origin)
            .await
    }

    #[cfg(not(feature = "compiler"))]
    #[expect(clippy::unused_async, reason = "a compiler would be waited for")]
    async fn make_code(&self, examined: &Examined) -> Result<Compiled, PolicyError> {
        Err(PolicyError::NoCompiler {
            origin: examined.origin.clone(),
        })
    }

    async fn adopt(&self, code: Compiled) -> Result<Component, PolicyError> {
        let engine = self.engine.clone();
        match tokio::task::spawn_blocking(move || code.adopt(&engine)).await {
            Ok(component) => component.map_err(PolicyError::host),
            Err(panicked) => Err(PolicyError::Host(panicked.to_string())),
        }
    }

    /// Whether this host offers each function that it imports, with the types that it expects, and it exports what we call.
    pub fn link(&self, compiled: CompiledPolicy) -> Result<LinkedPolicy, PolicyError> {
        let CompiledPolicy {
            examined,
            component,
        } = compiled;
        let linked = self
            .linker
            .instantiate_pre(&component)
            .and_then(RefreshPolicyPre::new);
        Ok(LinkedPolicy(Policy {
            name: examined.origin.clone(),
            version: String::new(),
            summary: String::new(),
            config_schema: String::new(),
            digest: examined.digest,
            imports: examined.imports,
            engine: self.engine.clone(),
            times: self.times,
            metering: self.metering,
            pre: linked.map_err(|cause| PolicyError::misfit(&examined.origin, &cause))?,
        }))
    }

    /// The first call: it says who it is.
    pub async fn introduce(&self, linked: LinkedPolicy) -> Result<Policy, PolicyError> {
        let LinkedPolicy(mut policy) = linked;
        let described = policy
            .probe(Task::Describe, |guest, store| {
                Box::pin(guest.refit_policy_policy().call_describe(store))
            })
            .await?;
        policy.introduce(described)?;
        Ok(policy)
    }

    /// What was compiled before, if it is of use here.
    async fn recall(&self, examined: &Examined) -> Option<Component> {
        let cache = self.cache.clone()?;
        let names = match self.cache_name(examined) {
            Some(name) => vec![name],
            // All of them are tried, and wasmtime refuses what it has no use for.
            None => {
                let (cache, component) = (cache.clone(), Sha256::digest(&examined.bytes).into());
                let names = tokio::task::spawn_blocking(move || cache.names_of(&component)).await;
                names.unwrap_or_default()
            }
        };
        for name in names {
            let cache = cache.clone();
            let found = tokio::task::spawn_blocking(move || cache.get(&name)).await;
            let Some(code) = found.ok().flatten() else {
                continue;
            };
            if let Ok(component) = self.adopt(Compiled::unsealed(code)).await {
                return Some(component);
            }
        }
        None
    }

    async fn keep(&self, examined: &Examined, code: &Compiled) {
        let (Some(cache), Some(name)) = (self.cache.clone(), self.cache_name(examined)) else {
            return;
        };
        let code = code.code().clone();
        // One that does not end well has told so itself.
        let _ = tokio::task::spawn_blocking(move || cache.put(&name, &code)).await;
    }

    /// Only a compiler can say how it would compile.
    #[cfg(not(feature = "compiler"))]
    fn cache_name(&self, _: &Examined) -> Option<cache::Name> {
        None
    }

    #[cfg(feature = "compiler")]
    fn cache_name(&self, examined: &Examined) -> Option<cache::Name> {
        use std::hash::Hash as _;
        /// Takes in what is hashed, as `std` has no hash that is the same in the next process.
        struct Collected(Sha256);
        impl std::hash::Hasher for Collected {
            fn write(&mut self, bytes: &[u8]) {
                self.0.update(bytes);
            }
            fn finish(&self) -> u64 {
                0
            }
        }
        let mut compatibility = Collected(Sha256::new());
        self.engine
            .precompile_compatibility_hash()
            .hash(&mut compatibility);
        Some(cache::Name {
            component: Sha256::digest(&examined.bytes).into(),
            compatibility: compatibility.0.finalize().into(),
        })
    }
}
