;; Computes for ever over its configuration
(func $read-on (export "validate-config") (type $validate-config) (loop $for-ever (br $for-ever)) unreachable)
