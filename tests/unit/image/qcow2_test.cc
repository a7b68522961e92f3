// Probe on qcow2 files: hostile ones by hand, healthy ones by qemu-img.
#include <gmock/gmock.h>

#include <functional>
#include <random>

#include "tests/unit/image/images.h"

namespace bim::image {
namespace {

using std::string_literals::operator""s;
using testing::AnyOf;
using testing::HasSubstr;
using L = SmallLayout;

constexpr auto kRefused = base::Code::kFailedPrecondition;
constexpr auto kCut = base::Code::kDataLoss;

TEST(Qcow2, TheSmallestOneIsTaken) {
  const auto info = ProbeBytes(SmallQcow2());
  ASSERT_TRUE(info.ok()) << info.status().ToString();
  EXPECT_EQ(info->format, Format::kQcow2);
  EXPECT_EQ(info->virtual_size, L::kVirtualSize);
  EXPECT_EQ(info->file_size, L::kSize);
}

struct Hostile {
  const char* name;
  base::Code code;  // kOk: harmless, must be taken
  const char* words;
  std::function<void(std::string&)> edit;
};

void PrintTo(const Hostile& hostile, std::ostream* out) {
  *out << hostile.name;
}

std::function<void(std::string&)> Set32(size_t offset, uint32_t value) {
  return [=](std::string& image) { Store32(image, offset, value); };
}
std::function<void(std::string&)> Set64(size_t offset, uint64_t value) {
  return [=](std::string& image) { Store64(image, offset, value); };
}
// An extension of `type` right after the fixed header.
std::function<void(std::string&)> Extension(uint32_t type, uint32_t length) {
  return [=](std::string& image) {
    Store32(image, 112, type);
    Store32(image, 116, length);
  };
}

const Hostile kHostile[] = {
    {"Version0", kRefused, "version is 0; expected 2 or 3", Set32(4, 0)},
    {"Version1", kRefused, "qcow (version 1)", Set32(4, 1)},
    {"Version4", kRefused, "version is 4", Set32(4, 4)},
    {"VersionMax", kRefused, "version is 4294967295", Set32(4, ~0u)},

    {"BackingFile", kRefused, "backing file \"/etc/passwd\"",
     [](std::string& i) {
       Store64(i, 8, 400);
       Store32(i, 16, 11);
       i.replace(400, 11, "/etc/passwd");
     }},
    {"BackingFileControlCharacters", kRefused, R"(backing file "a\x1bb\xff")",
     [](std::string& i) {
       Store64(i, 8, 400);
       Store32(i, 16, 4);
       i.replace(400, 4,
                 "a\x1B"
                 "b\xFF");
     }},
    {"BackingFileBeyondTheFile", kRefused, "backing file", Set64(8, ~0ull)},
    {"BackingFileHuge", kRefused, "backing file",
     [](std::string& i) {
       Store64(i, 8, 400);
       Store32(i, 16, ~0u);
     }},
    {"BackingFileSizeOnly", kRefused, "backing file", Set32(16, 5)},

    {"ClusterBits0", kRefused, "cluster_bits is 0; expected 9 to 21",
     Set32(20, 0)},
    {"ClusterBits8", kRefused, "cluster_bits is 8", Set32(20, 8)},
    {"ClusterBits22", kRefused, "cluster_bits is 22", Set32(20, 22)},
    {"ClusterBits64", kRefused, "cluster_bits is 64", Set32(20, 64)},
    {"ClusterBitsMax", kRefused, "cluster_bits is 4294967295", Set32(20, ~0u)},
    {"ClusterBits21", kRefused, "multiple of the cluster size", Set32(20, 21)},

    {"Size0", kRefused, "virtual size is 0", Set64(24, 0)},
    {"SizeBeyondL1", kRefused, "L1 size is 1; expected at least 2",
     Set64(24, 32769)},
    {"Size2To63", kRefused, "virtual size is 9223372036854775808",
     Set64(24, 1ull << 63)},
    {"SizeMax", kRefused, "virtual size", Set64(24, ~0ull)},
    {"Size2To63Less1", kRefused, "L1 size is 1", Set64(24, (1ull << 63) - 1)},
    {"SizeOdd", base::Code::kOk, "", Set64(24, 1)},

    {"Aes", kRefused, "encrypted (crypt_method 1)", Set32(32, 1)},
    {"Luks", kRefused, "encrypted (crypt_method 2)", Set32(32, 2)},
    {"CryptMax", kRefused, "encrypted", Set32(32, ~0u)},

    {"L1Size0", kRefused, "L1 size is 0", Set32(36, 0)},
    {"L1SizeTooBig", kRefused, "at most 4194304 entries", Set32(36, 4194305)},
    {"L1SizeMax", kRefused, "at most 4194304 entries", Set32(36, ~0u)},
    {"L1SizeBeyondTheFile", kCut,
     "the L1 table of 33554432 bytes lies at 1536, "
     "the file ends at 3584",
     Set32(36, 4194304)},
    {"L1At0", kRefused, "the L1 table lies at 0", Set64(40, 0)},
    {"L1Misaligned", kRefused, "expected a multiple of the cluster size 512",
     Set64(40, 1544)},
    {"L1BeyondTheFile", kCut, "the L1 table", Set64(40, 4096)},
    {"L1AtTheEnd", kCut, "the L1 table", Set64(40, L::kSize)},
    {"L1Overflow", kCut, "the L1 table", Set64(40, ~0ull << 9)},

    {"RefcountAt0", kRefused, "the refcount table lies at 0", Set64(48, 0)},
    {"RefcountMisaligned", kRefused, "the refcount table", Set64(48, 513)},
    {"RefcountBeyondTheFile", kCut, "the refcount table",
     Set64(48, 1ull << 40)},
    {"RefcountOverflow", kCut, "the refcount table", Set64(48, ~0ull << 9)},
    {"RefcountNone", kRefused, "refcount table clusters is 0", Set32(56, 0)},
    {"RefcountTooMany", kRefused, "refcount table clusters", Set32(56, 16385)},
    {"RefcountMax", kRefused, "refcount table clusters", Set32(56, ~0u)},
    {"RefcountCut", kCut, "the refcount table", Set32(56, 100)},
    {"RefcountBlockMisaligned", kRefused, "a refcount block",
     [](std::string& i) {
       Store32(i, 20, 10);
       Store64(i, 24, 512);
       Store64(i, 40, 2048);
       Store64(i, 48, 1024);
       Store64(i, 1024, 1536);
     }},
    {"RefcountBlockBeyondTheFile", kCut, "a refcount block lies at 1048576",
     Set64(L::kRefcountTable + 16, 1 << 20)},

    {"SnapshotsTooMany", kRefused, "number of snapshots is 65537",
     Set32(60, 65537)},
    {"SnapshotsMax", kRefused, "number of snapshots", Set32(60, ~0u)},
    {"SnapshotsAt0", kRefused, "the snapshot table lies at 0", Set32(60, 1)},
    {"SnapshotsCut", kCut, "the snapshot table",
     [](std::string& i) {
       Store32(i, 60, 65536);
       Store64(i, 64, L::kData);
     }},
    {"SnapshotsOverflow", kCut, "the snapshot table",
     [](std::string& i) {
       Store32(i, 60, 65536);
       Store64(i, 64, ~0ull << 9);
     }},
    {"SnapshotInsane", kRefused, "snapshot 0 has",
     [](std::string& i) {  // the table is data: 'dddd'
       Store32(i, 60, 1);
       Store64(i, 64, L::kData);
     }},
    {"SnapshotNameBeyondTheFile", kCut, "the end of snapshot 0",
     [](std::string& i) {
       Store32(i, 60, 1);
       Store64(i, 64, L::kData);
       std::memset(i.data() + L::kData, 0, 40);
       StoreBigEndian(i, L::kData + 14, 65535, 2);
     }},
    {"SnapshotL1BeyondTheFile", kCut, "the L1 table of snapshot 0",
     [](std::string& i) {
       Store32(i, 60, 1);
       Store64(i, 64, L::kData);
       std::memset(i.data() + L::kData, 0, 40);
       Store64(i, L::kData, 1 << 20);
       Store32(i, L::kData + 8, 1);
     }},
    {"SnapshotFine", base::Code::kOk, "",
     [](std::string& i) {
       Store32(i, 60, 2);
       Store64(i, 64, L::kData);
       std::memset(i.data() + L::kData, 0, 512);
       Store64(i, L::kData, L::kL1);
       Store32(i, L::kData + 8, 1);
       StoreBigEndian(i, L::kData + 12, 3, 2);
     }},

    {"Dirty", base::Code::kOk, "", Set64(72, 1)},
    {"Corrupt", kRefused, "marked corrupt", Set64(72, 2)},
    {"ExternalData", kRefused, "external file", Set64(72, 4)},
    {"Feature5", kRefused, "feature bit 5", Set64(72, 32)},
    {"Feature63", kRefused, "feature bit 63", Set64(72, 1ull << 63)},
    {"AllFeatures", kRefused, "external file", Set64(72, ~0ull)},
    {"CompatibleFeatures", base::Code::kOk, "", Set64(80, ~0ull)},
    {"AutoclearFeatures", base::Code::kOk, "", Set64(88, ~0ull)},
    {"ExtendedL2OfSmallClusters", kRefused,
     "cluster_bits is 9; expected 14 to 21", Set64(72, 16)},
    {"RefcountOrder7", kRefused, "refcount_order is 7", Set32(96, 7)},
    {"RefcountOrder6", base::Code::kOk, "", Set32(96, 6)},
    {"HeaderLength0", kRefused, "length is 0", Set32(100, 0)},
    {"HeaderLength103", kRefused, "length is 103", Set32(100, 103)},
    {"HeaderLength108", kRefused, "length is 108", Set32(100, 108)},
    {"HeaderLength104", base::Code::kOk, "", Set32(100, 104)},
    {"HeaderLengthCluster", base::Code::kOk, "", Set32(100, 512)},
    {"HeaderLengthBeyondCluster", kRefused, "length is 520", Set32(100, 520)},
    {"HeaderLengthMax", kRefused, "length is 4294967288", Set32(100, ~7u)},
    {"Zstd", base::Code::kOk, "",
     [](std::string& i) {
       Store64(i, 72, 8);
       i[104] = 1;
     }},
    {"ZstdWithoutFeature", kRefused, "compression type 1 without",
     [](std::string& i) { i[104] = 1; }},
    {"FeatureWithoutZstd", kRefused, "compression type 0 with", Set64(72, 8)},
    {"Compression2", kRefused, "compression type is 2",
     [](std::string& i) {
       Store64(i, 72, 8);
       i[104] = 2;
     }},

    {"ExtensionExternalData", kRefused, "external data file",
     Extension(0x44415441, 8)},
    {"ExtensionEncryption", kRefused, "encryption header",
     Extension(0x0537be77, 16)},
    {"ExtensionUnknown", base::Code::kOk, "", Extension(0x12345678, 21)},
    {"ExtensionToTheEnd", base::Code::kOk, "", Extension(0x12345678, 392)},
    {"ExtensionTooLong", kRefused, "header extension at 112 takes 393 bytes",
     Extension(0x12345678, 393)},
    {"ExtensionMax", kRefused, "header extension", Extension(0x12345678, ~0u)},
    {"ExtensionBehindAnother", kRefused, "external data file",
     [](std::string& i) {
       Extension(0x12345678, 3)(i);
       Store32(i, 128, 0x44415441);
     }},
    {"ExtensionsOfNothing", base::Code::kOk, "",
     [](std::string& i) {
       for (size_t at = 112; at < 512; at += 8) Store64(i, at, 1ull << 32);
     }},

    {"L2Misaligned", kRefused, "an L2 table",
     [](std::string& i) {
       Store32(i, 20, 10);
       Store64(i, 24, 512);
       Store64(i, 40, 2048);
       Store64(i, 48, 1024);
       std::memset(i.data() + 1024, 0, 1024);
       Store64(i, 2048, 2560);
     }},
    {"L2BeyondTheFile", kCut, "an L2 table of 512 bytes lies at 1048576",
     Set64(L::kL1, 1 << 20)},
    {"L2AtTheEnd", kCut, "an L2 table", Set64(L::kL1, L::kSize)},
    {"L2Max", kCut, "an L2 table", Set64(L::kL1, ~0ull)},
    {"L2None", base::Code::kOk, "", Set64(L::kL1, 0)},
    {"L2Twice", kRefused, "the L2 table at 2048 is used twice",
     [](std::string& i) {
       Store32(i, 36, 2);
       Store64(i, L::kL1 + 8, L::kL2);
     }},
    {"L2MoreThanClusters", kRefused,
     "more L2 tables than the file has clusters",
     [](std::string& i) {
       Store32(i, 36, 64);
       for (size_t at = 0; at < 64; ++at) Store64(i, L::kL1 + 8 * at, L::kL2);
     }},

    {"DataBeyondTheFile", kCut,
     "the qcow2 file is cut short: a cluster lies at 3584, the file ends at "
     "3584",
     Set64(L::kL2 + 8, L::kSize)},
    {"DataMax", kCut, "a cluster", Set64(L::kL2 + 8, 0x00fffffffffffe00)},
    {"DataReservedBits", base::Code::kOk, "",
     Set64(L::kL2 + 8, 0x3f000000000001fe)},
    {"DataMisaligned", kRefused,
     "a cluster lies at 2560; expected a multiple of",
     [](std::string& i) {
       Store32(i, 20, 10);
       Store64(i, 24, 512);
       Store64(i, 40, 1024);
       Store64(i, 48, 3072);
       std::memset(i.data() + 3072, 0, 512);
       Store64(i, 1024, 2048);
     }},
    {"ZeroCluster", base::Code::kOk, "", Set64(L::kL2 + 8, 1)},
    {"ZeroClusterAllocated", base::Code::kOk, "",
     Set64(L::kL2 + 8, L::kData | 1)},
    {"CompressedFine", base::Code::kOk, "",
     Set64(L::kL2 + 8, 1ull << 62 | (L::kSize - 1))},
    {"CompressedBeyondTheFile", kCut, "a compressed cluster lies at 3584",
     Set64(L::kL2 + 8, 1ull << 62 | L::kSize)},
    {"CompressedMax", kCut, "a compressed cluster",
     Set64(L::kL2 + 8, ~0ull >> 1)},
};

class Qcow2Hostile : public testing::TestWithParam<Hostile> {};

TEST_P(Qcow2Hostile, IsJudged) {
  std::string image = SmallQcow2();
  GetParam().edit(image);
  MemoryReader reader(AsBytes(image));
  const auto info = Probe(reader, image.size());
  EXPECT_EQ(info.status().code(), GetParam().code) << info.status().ToString();
  EXPECT_THAT(info.status().message(), HasSubstr(GetParam().words));
}

INSTANTIATE_TEST_SUITE_P(Headers, Qcow2Hostile, testing::ValuesIn(kHostile),
                         [](const auto& info) { return info.param.name; });

TEST(Qcow2, Version2) {
  std::string image = SmallQcow2();
  Store32(image, 4, 2);
  std::memset(image.data() + 72, 0, 40);
  EXPECT_TRUE(ProbeBytes(image).ok());
  Store64(image, L::kL2 + 8, L::kData | 1);
  EXPECT_EQ(ProbeBytes(image).status().code(), kRefused) << "zero cluster";
  // In version 2 the extensions begin at 72, and features do not exist.
  image = SmallQcow2();
  Store32(image, 4, 2);
  std::memset(image.data() + 72, 0, 40);
  Store32(image, 72, 0x44415441);
  EXPECT_EQ(ProbeBytes(image).status().code(), kRefused);
}

TEST(Qcow2, ExtendedL2) {
  // Clusters of 16 KiB: L1, one L2, refcount table, one of data.
  constexpr size_t kCluster = 16384;
  std::string image(kCluster * 5, '\0');
  image.replace(0, 512, SmallQcow2().substr(0, 512));
  Store32(image, 20, 14);
  Store64(image, 40, kCluster);
  Store64(image, 48, kCluster * 3);
  Store64(image, 72, 16);
  Store64(image, kCluster, kCluster * 2);
  Store64(image, kCluster * 2 + 16, kCluster * 4);
  const auto with_bitmap = [&](uint64_t bitmap, uint64_t offset) {
    Store64(image, kCluster * 2 + 16, offset);
    Store64(image, kCluster * 2 + 24, bitmap);
    return ProbeBytes(image).status().code();
  };
  EXPECT_EQ(with_bitmap(0xFFFFFFFF, kCluster * 4), base::Code::kOk);
  EXPECT_EQ(with_bitmap(0xFFFF0000'0000FFFF, kCluster * 4), base::Code::kOk);
  EXPECT_EQ(with_bitmap(0xFFFFFFFF'00000000, 0), base::Code::kOk);
  EXPECT_EQ(with_bitmap(0x00000001'00000001, kCluster * 4), kRefused);
  EXPECT_EQ(with_bitmap(1, 0), kRefused);
  EXPECT_EQ(with_bitmap(1, kCluster * 5), kCut);
  // A bitmap is not an offset, however it looks.
  EXPECT_EQ(with_bitmap(0x0000FFFF'FFFF0000, kCluster * 4), base::Code::kOk);
}

TEST(Qcow2, EveryTruncatedPrefixIsRefused) {
  const std::string image = SmallQcow2();
  for (size_t size = 0; size < image.size(); ++size) {
    const auto info = ProbeBytes(image.substr(0, size));
    if (size < 4) {
      ASSERT_FALSE(info.ok()) << size;
    } else if (size % 512 != 0) {
      ASSERT_EQ(info.status().code(), kRefused) << size;
    } else {
      ASSERT_EQ(info.status().code(), kCut) << size << info.status().ToString();
    }
  }
}

TEST(Qcow2, EveryBitFlipOfTheMetadataIsSurvived) {
  const std::string image = SmallQcow2();
  for (size_t bit = 0; bit < L::kData * 8; ++bit) {
    std::string flipped = image;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    const auto info = ProbeBytes(flipped);
    if (!info.ok()) {
      ASSERT_THAT(info.status().code(), AnyOf(kRefused, kCut)) << bit;
      ASSERT_FALSE(info.status().message().empty());
    } else {
      ASSERT_LE(info->virtual_size, uint64_t{1} << 20) << bit;
    }
  }
}

// Whatever a mutant says of itself, it is read a few times at most: its head,
// its header, and each table once.
TEST(Qcow2, MutationsNeverCostMoreThanTheFile) {
  const std::string image = SmallQcow2();
  std::mt19937 random(1234567);
  const auto below = [&](uint32_t n) { return random() % n; };
  const uint64_t interesting[] = {0,          1,        ~0ull,     1ull << 62,
                                  1ull << 63, 512,      2048,      L::kL2,
                                  L::kL1,     L::kSize, 1ull << 9, ~511ull};
  int accepted = 0;
  for (int i = 0; i < 20000; ++i) {
    std::string mutant = image;
    for (uint32_t edits = 1 + below(6); edits > 0; --edits) {
      // Half of the edits hit the header, where most of the rules are.
      const size_t at = below(2) ? below(160) : below(L::kSize);
      switch (below(5)) {
        case 0:
          mutant[at] = static_cast<char>(random());
          break;
        case 1:
          mutant[at] = static_cast<char>(mutant[at] ^ (1 << below(8)));
          break;
        case 2:
          Store64(mutant, at / 8 * 8 % (L::kSize - 8),
                  interesting[below(std::size(interesting))]);
          break;
        case 3:
          Store32(mutant, at / 4 * 4 % (L::kSize - 4), random());
          break;
        case 4:
          std::swap(mutant[at], mutant[below(L::kSize)]);
          break;
      }
    }
    if (below(4) == 0) mutant.resize(below(8) * 512);
    MemoryReader reader(AsBytes(mutant));
    const auto info = Probe(reader, mutant.size());
    ASSERT_LE(reader.bytes_read(), 8 * L::kSize + (1 << 16)) << i;
    accepted += info.ok();
    if (!info.ok()) {
      ASSERT_THAT(info.status().code(), AnyOf(kRefused, kCut))
          << i << info.status().ToString();
    }
  }
  // The mutations are neither all deadly nor all harmless.
  EXPECT_GT(accepted, 500);
  EXPECT_LT(accepted, 19500);
}

// 4 Mi L1 entries that all name the same few tables.
TEST(Qcow2, AnL1OfRepeatedTablesIsCheapToRefuse) {
  std::string image(L::kSize + (32 << 20), '\0');
  image.replace(0, L::kSize, SmallQcow2());
  Store32(image, 36, 4 << 20);
  Store64(image, 40, L::kSize);
  for (size_t i = 0; i < 4 << 20; ++i) {
    Store64(image, L::kSize + 8 * i, L::kL2 + 512 * (i % 3));
  }
  MemoryReader reader(AsBytes(image));
  const auto info = Probe(reader, image.size());
  EXPECT_EQ(info.status().code(), kRefused) << info.status().ToString();
  EXPECT_LE(reader.bytes_read(), image.size() + (4 << 20));
}

// ---- Images of qemu-img.

class Qcow2Tools : public ToolTest {
 protected:
  void SetUp() override {
    if (!Have("qemu-img") || !Have("qemu-io")) {
      GTEST_SKIP() << "qemu-img or qemu-io is not installed";
    }
  }

  // A disk of 20 MiB and a bit with data at its begin, in it and at its end.
  void MakeSource() {
    Run("truncate -s 20972032 source && head -c 3000000 /dev/urandom | "
        "dd of=source conv=notrunc status=none && head -c 200000 /dev/urandom |"
        " dd of=source bs=512 seek=20480 conv=notrunc status=none && "
        "head -c 512 /dev/urandom | dd of=source bs=512 seek=40960 "
        "conv=notrunc status=none");
  }

  // Rounds the file up to whole sectors, as QEMU's writes would.
  std::string Image(const std::string& name = "image") {
    std::string image = Read(name);
    image.resize((image.size() + 511) / 512 * 512);
    return image;
  }

  uint64_t VirtualSize(const std::string& name = "image") {
    const std::string json = Run("qemu-img info --output=json " + name);
    const std::string key = "\"virtual-size\": ";
    const size_t at = json.find(key);
    EXPECT_NE(at, json.npos) << json;
    return at == json.npos ? 0 : std::stoull(json.substr(at + key.size()));
  }

  void ExpectTaken(const std::string& name = "image") {
    const std::string image = Image(name);
    const auto info = ProbeBytes(image);
    ASSERT_TRUE(info.ok()) << info.status().ToString();
    EXPECT_EQ(info->format, Format::kQcow2);
    EXPECT_EQ(info->virtual_size, VirtualSize(name));
    EXPECT_EQ(info->file_size, image.size());
    EXPECT_TRUE(CheckHead(AsBytes(image).first(512), false, "").ok());
  }

  void ExpectHalfRefused() {
    const std::string image = Image();
    const auto info = ProbeBytes(image.substr(0, image.size() / 2 / 512 * 512));
    EXPECT_EQ(info.status().code(), kCut) << info.status().ToString();
    EXPECT_THAT(info.status().message(), HasSubstr("cut short"));
  }
};

TEST_F(Qcow2Tools, ConvertedInEveryLayout) {
  MakeSource();
  for (const char* how : {"-o compat=0.10",
                          "-o compat=1.1",
                          "-c",
                          "-c -o compat=0.10",
                          "-c -o compression_type=zstd",
                          "-o cluster_size=512",
                          "-o cluster_size=4k",
                          "-o cluster_size=64k",
                          "-o cluster_size=1M",
                          "-o cluster_size=2M",
                          "-c -o cluster_size=512",
                          "-c -o cluster_size=2M",
                          "-o extended_l2=on",
                          "-o extended_l2=on,cluster_size=2M",
                          "-c -o extended_l2=on",
                          "-o preallocation=metadata",
                          "-o preallocation=falloc",
                          "-o lazy_refcounts=on",
                          "-o refcount_bits=1",
                          "-o refcount_bits=64",
                          "-W -m 4",
                          "-S 0"}) {
    SCOPED_TRACE(how);
    Run("qemu-img convert -f raw -O qcow2 " + std::string(how) +
        " source image");
    ExpectTaken();
    ExpectHalfRefused();
  }
}

TEST_F(Qcow2Tools, Created) {
  for (const char* how :
       {"1M", "10G", "63T", "-o preallocation=metadata 100M",
        "-o preallocation=metadata,extended_l2=on 100M",
        "-o cluster_size=512 1G",
        "-o cluster_size=512,preallocation=metadata 8M",
        "-o cluster_size=2M 100T", "-o compat=0.10 5G", "512"}) {
    SCOPED_TRACE(how);
    Run("rm -f image; qemu-img create -q -f qcow2 image " + std::string(how));
    ExpectTaken();
  }
}

TEST_F(Qcow2Tools, WrittenByQemuIo) {
  for (const char* how : {"", "-o extended_l2=on", "-o compat=0.10",
                          "-o cluster_size=512", "-o lazy_refcounts=on"}) {
    SCOPED_TRACE(how);
    Run("rm -f image; qemu-img create -q -f qcow2 " + std::string(how) +
        " image 3G");
    Run("qemu-io -f qcow2 -c 'write -q 0 64k' -c 'write -q 700M 5M' "
        "-c 'write -q 2999M 4k' -c 'write -q 100M 1k' image");
    ExpectTaken();
    ExpectHalfRefused();
    Run("qemu-io -f qcow2 -c 'discard -q 700M 1M' -c 'write -q -z 702M 1M' "
        "-c 'write -q -z -u 704M 64k' image");
    ExpectTaken();
    Run("qemu-img resize -q image 5G");
    ExpectTaken();
  }
}

TEST_F(Qcow2Tools, SnapshotsAndBitmaps) {
  Run("qemu-img create -q -f qcow2 image 100M && "
      "qemu-io -f qcow2 -c 'write -q 0 2M' image && "
      "qemu-img snapshot -c one image && "
      "qemu-io -f qcow2 -c 'write -q 1M 4M' image && "
      "qemu-img snapshot -c 'a second, longer name' image && "
      "qemu-img bitmap --add image bits");
  ExpectTaken();
  ExpectHalfRefused();
  Run("qemu-img bitmap --remove image bits && "
      "qemu-img snapshot -a one image && qemu-img snapshot -d one image");
  ExpectTaken();
}

TEST_F(Qcow2Tools, ABackingFileIsRefusedUntilItIsGone) {
  Run("qemu-img create -q -f qcow2 base 10M && "
      "qemu-img create -q -f qcow2 -b base -F qcow2 image && "
      "qemu-io -f qcow2 -c 'write -q 0 64k' image");
  const auto info = ProbeBytes(Image());
  EXPECT_EQ(info.status().code(), kRefused);
  EXPECT_THAT(info.status().message(), HasSubstr("backing file \"base\""));
  EXPECT_FALSE(CheckHead(AsBytes(Image()).first(512), false, "").ok());
  Run("qemu-img rebase -b '' image");
  ExpectTaken();
}

TEST_F(Qcow2Tools, AnExternalDataFileIsRefused) {
  Run("qemu-img create -q -f qcow2 -o data_file=data,data_file_raw=on image "
      "10M");
  const auto info = ProbeBytes(Image());
  EXPECT_EQ(info.status().code(), kRefused);
  EXPECT_THAT(info.status().message(), HasSubstr("external file"));
}

TEST_F(Qcow2Tools, EncryptionIsRefused) {
  // Its key derivation measures the CPU's time, which not every sandbox tells.
  const std::string made = Run(
      "qemu-img create -q -f qcow2 --object secret,id=s,data=abc123 -o "
      "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 image 1M "
      "2>/dev/null && echo made || true");
  if (made.empty()) GTEST_SKIP() << "qemu-img cannot encrypt here";
  const auto info = ProbeBytes(Image());
  EXPECT_EQ(info.status().code(), kRefused);
  EXPECT_THAT(info.status().message(), HasSubstr("encrypted"));
}

TEST_F(Qcow2Tools, MutationsOfARealImage) {
  Run("qemu-img create -q -f qcow2 -o cluster_size=4k image 64M && "
      "qemu-io -f qcow2 -c 'write -q 0 40k' -c 'write -q 30M 20k' image && "
      "qemu-img snapshot -c s image");
  const std::string image = Image();
  std::mt19937 random(42);
  for (int i = 0; i < 3000; ++i) {
    std::string mutant = image;
    for (uint32_t edits = 1 + random() % 4; edits > 0; --edits) {
      const size_t at =
          random() % 3 == 0 ? random() % 256 : random() % mutant.size();
      mutant[at] = static_cast<char>(random());
    }
    MemoryReader reader(AsBytes(mutant));
    const auto info = Probe(reader, mutant.size());
    ASSERT_LE(reader.bytes_read(), 4 * mutant.size()) << i;
    if (!info.ok()) {
      ASSERT_THAT(info.status().code(), AnyOf(kRefused, kCut)) << i;
    }
  }
}

}  // namespace
}  // namespace bim::image
