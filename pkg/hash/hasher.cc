#include "pkg/hash/hasher.h"

#include <openssl/evp.h>

#include <algorithm>
#include <array>

namespace bim::hash {

struct Hasher::State {
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }

  void Begin(base::DigestAlgorithm algorithm) {
    const EVP_MD* type = algorithm == base::DigestAlgorithm::kSha256
                             ? EVP_sha256()
                             : EVP_sha512();
    BIM_CHECK(context != nullptr);
    BIM_CHECK(EVP_DigestInit_ex(context, type, nullptr) == 1);
  }
};

Hasher::Hasher(base::DigestAlgorithm algorithm)
    : algorithm_(algorithm), state_(std::make_unique<State>()) {
  state_->Begin(algorithm_);
}
Hasher::~Hasher() = default;
Hasher::Hasher(Hasher&&) noexcept = default;
Hasher& Hasher::operator=(Hasher&&) noexcept = default;

void Hasher::Update(std::span<const std::byte> data) {
  BIM_CHECK(EVP_DigestUpdate(state_->context, data.data(), data.size()) == 1);
}

void Hasher::UpdateZeros(uint64_t count) {
  static constexpr std::array<std::byte, 65536> kZeros{};
  while (count > 0) {
    const size_t piece = std::min<uint64_t>(count, kZeros.size());
    Update(std::span(kZeros).first(piece));
    count -= piece;
  }
}

base::Digest Hasher::Finish() {
  std::array<std::byte, EVP_MAX_MD_SIZE> out{};
  unsigned int size = 0;
  BIM_CHECK(EVP_DigestFinal_ex(state_->context,
                               reinterpret_cast<unsigned char*>(out.data()),
                               &size) == 1);
  base::Digest digest(algorithm_, std::span(out).first(size));
  state_->Begin(algorithm_);
  return digest;
}

base::Digest HashOf(base::DigestAlgorithm algorithm,
                    std::span<const std::byte> data) {
  Hasher hasher(algorithm);
  hasher.Update(data);
  return hasher.Finish();
}

}  // namespace bim::hash
