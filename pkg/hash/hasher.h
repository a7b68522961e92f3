// Streaming SHA-256 and SHA-512: the only place that knows OpenSSL's EVP.
// Not thread-safe: one hasher, one thread at a time.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "pkg/base/digest.h"

namespace bim::hash {

class Hasher {
 public:
  explicit Hasher(base::DigestAlgorithm algorithm);
  ~Hasher();
  Hasher(Hasher&&) noexcept;
  Hasher& operator=(Hasher&&) noexcept;

  void Update(std::span<const std::byte> data);
  // `count` zero bytes, without needing a buffer of that size.
  void UpdateZeros(uint64_t count);
  // The digest of all that was given; the hasher begins anew.
  base::Digest Finish();

 private:
  struct State;
  base::DigestAlgorithm algorithm_;
  std::unique_ptr<State> state_;
};

base::Digest HashOf(base::DigestAlgorithm algorithm,
                    std::span<const std::byte> data);

}  // namespace bim::hash
