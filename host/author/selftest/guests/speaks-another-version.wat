;; Speaks a version of the contract that the host does not
;; speaks: 0.2.0
