#include "pkg/hash/hasher.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

namespace bim::hash {
namespace {

using base::DigestAlgorithm;

std::span<const std::byte> Bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

// FIPS 180-4 examples.
TEST(HasherTest, KnownVectors) {
  const auto sha256 = [](std::string_view text) {
    return HashOf(DigestAlgorithm::kSha256, Bytes(text)).Hex();
  };
  const auto sha512 = [](std::string_view text) {
    return HashOf(DigestAlgorithm::kSha512, Bytes(text)).Hex();
  };
  EXPECT_EQ(sha256(""),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256("abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(sha256(std::string(1'000'000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  EXPECT_EQ(sha512(""),
            "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce"
            "47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e");
  EXPECT_EQ(sha512("abc"),
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
            "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f");
  EXPECT_EQ(sha512(std::string(1'000'000, 'a')),
            "e718483d0ce769644e2e42c7bc15b4638e1f98b13b2044285632a803afa973eb"
            "de0ff244877ea60a4cb0432ce577c31beb009c5c2c49aa2e4eadb217ad8cc09b");
}

TEST(HasherTest, PiecesAndFinishBeginsAnew) {
  std::mt19937 random(1);
  std::string text(300'000, '\0');
  for (char& c : text) c = static_cast<char>(random());
  for (DigestAlgorithm algorithm :
       {DigestAlgorithm::kSha256, DigestAlgorithm::kSha512}) {
    Hasher hasher(algorithm);
    for (int round = 0; round < 3; ++round) {
      for (size_t at = 0; at < text.size();) {
        const size_t count =
            std::min<size_t>(text.size() - at, random() % 5000);
        hasher.Update(Bytes(std::string_view(text).substr(at, count)));
        at += count;
      }
      EXPECT_EQ(hasher.Finish(), HashOf(algorithm, Bytes(text)));
    }
    EXPECT_EQ(hasher.Finish(), HashOf(algorithm, {}));
    Hasher moved = std::move(hasher);
    moved.Update(Bytes("abc"));
    EXPECT_EQ(moved.Finish(), HashOf(algorithm, Bytes("abc")));
  }
}

TEST(HasherTest, UpdateZerosIsUpdateWithZeros) {
  for (uint64_t count : {0, 1, 511, 65'535, 65'536, 65'537, 131'072, 200'000}) {
    Hasher hasher(DigestAlgorithm::kSha512);
    hasher.Update(Bytes("x"));
    hasher.UpdateZeros(count);
    hasher.Update(Bytes("y"));
    const std::string text = "x" + std::string(count, '\0') + "y";
    EXPECT_EQ(hasher.Finish(), HashOf(DigestAlgorithm::kSha512, Bytes(text)))
        << count;
  }
}

}  // namespace
}  // namespace bim::hash
