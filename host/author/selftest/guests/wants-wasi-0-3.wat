;; Imports an interface of WASI 0.3
(func (export "refresh") (type $refresh) (drop (call $listen )) (i32.const 4160))
