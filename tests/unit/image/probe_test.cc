// Probe on raw and iso files, and on readers that fail.
#include "pkg/image/probe.h"

#include <gmock/gmock.h>

#include "tests/unit/image/images.h"

namespace bim::image {
namespace {

using std::string_literals::operator""s;
using testing::HasSubstr;

std::string Iso(uint32_t blocks, uint16_t block_size, size_t file_size) {
  std::string iso(file_size, '\0');
  iso.replace(32768, 7, "\1CD001\1"s);
  StoreLittleEndian(iso, 32768 + 80, blocks, 4);
  StoreBigEndian(iso, 32768 + 84, blocks, 4);
  StoreLittleEndian(iso, 32768 + 128, block_size, 2);
  StoreBigEndian(iso, 32768 + 130, block_size, 2);
  return iso;
}

TEST(FormatName, Names) {
  EXPECT_EQ(FormatName(Format::kRaw), "raw");
  EXPECT_EQ(FormatName(Format::kQcow2), "qcow2");
  EXPECT_EQ(FormatName(Format::kIso), "iso");
}

TEST(ProbeRaw, WhateverIsNotRecognised) {
  for (const std::string& content :
       {std::string(512, '\0'), std::string(512, 'A'),
        std::string(5120, '\xFF'), "LUKS\xBA\xBE"s + std::string(506, '\0'),
        std::string(1 << 20, 'A')}) {
    const auto info = ProbeBytes(content);
    ASSERT_TRUE(info.ok()) << info.status().ToString();
    EXPECT_EQ(info->format, Format::kRaw);
    EXPECT_EQ(info->virtual_size, content.size());
    EXPECT_EQ(info->file_size, content.size());
  }
}

TEST(ProbeRaw, SizeRules) {
  const auto empty = ProbeBytes("");
  EXPECT_EQ(empty.status().code(), base::Code::kFailedPrecondition);
  EXPECT_THAT(empty.status().message(), HasSubstr("empty"));
  for (const size_t size : {1, 511, 513, 1000, 65537, 1 << 20 | 256}) {
    const auto info = ProbeBytes(std::string(size, '\0'));
    EXPECT_EQ(info.status().code(), base::Code::kFailedPrecondition);
    EXPECT_THAT(info.status().message(),
                HasSubstr("size " + std::to_string(size) +
                          " is not a multiple of 512"));
  }
}

TEST(ProbeRaw, RefusesWhatCheckHeadRefuses) {
  const auto info = ProbeBytes("<html>" + std::string(506, ' '));
  EXPECT_EQ(info.status().code(), base::Code::kFailedPrecondition);
  EXPECT_THAT(info.status().message(), HasSubstr("an HTML page"));
}

TEST(ProbeIso, Recognised) {
  for (const size_t extra : {0, 512, 1 << 20}) {
    const auto info = ProbeBytes(Iso(100, 2048, 204800 + extra));
    ASSERT_TRUE(info.ok()) << info.status().ToString();
    EXPECT_EQ(info->format, Format::kIso);
    EXPECT_EQ(info->virtual_size, 204800 + extra);
  }
}

TEST(ProbeIso, CutShort) {
  const auto info = ProbeBytes(Iso(100, 2048, 204800 - 512));
  EXPECT_EQ(info.status().code(), base::Code::kDataLoss);
  EXPECT_THAT(
      info.status().message(),
      HasSubstr("its volume takes 204800 bytes, the file ends at 204288"));
  EXPECT_EQ(ProbeBytes(Iso(0xFFFFFFFF, 0xFFFF, 65536)).status().code(),
            base::Code::kDataLoss);
}

TEST(ProbeIso, ADescriptorThatContradictsItselfProvesNothing) {
  std::string iso = Iso(1000, 2048, 65536);
  StoreBigEndian(iso, 32768 + 84, 1, 4);
  const auto info = ProbeBytes(iso);
  ASSERT_TRUE(info.ok()) << info.status().ToString();
  EXPECT_EQ(info->format, Format::kIso);
}

TEST(ProbeIso, OtherDescriptorsAreRaw) {
  std::string iso = Iso(1, 2048, 65536);
  iso[32768] = '\2';
  EXPECT_EQ(ProbeBytes(iso)->format, Format::kRaw);
  iso = Iso(1, 2048, 65536);
  iso[32774] = '\2';
  EXPECT_EQ(ProbeBytes(iso)->format, Format::kRaw);
  EXPECT_EQ(ProbeBytes(Iso(1, 2048, 65536).substr(0, 33280))->format,
            Format::kRaw);
}

class FailingReader : public Reader {
 public:
  base::Result<size_t> ReadAt(uint64_t, std::span<std::byte>) override {
    return base::UnavailableError("the disk is gone");
  }
};

TEST(ProbeReader, ItsFailureKeepsItsCode) {
  FailingReader reader;
  const auto info = Probe(reader, 512);
  EXPECT_EQ(info.status().code(), base::Code::kUnavailable);
  EXPECT_THAT(info.status().message(), HasSubstr("the disk is gone"));
}

TEST(ProbeReader, AFileShorterThanItsSizeIsDataLoss) {
  const std::string content(512, '\0');
  MemoryReader reader(AsBytes(content));
  const auto info = Probe(reader, 1024);
  EXPECT_EQ(info.status().code(), base::Code::kDataLoss);
  EXPECT_THAT(info.status().message(), HasSubstr("the file ends at 512"));
}

class ProbeTools : public ToolTest {};

TEST_F(ProbeTools, RealIso) {
  std::string tool;
  for (const char* name : {"xorrisofs", "genisoimage", "mkisofs"}) {
    if (Have(name)) tool = name;
  }
  if (tool.empty()) GTEST_SKIP() << "nothing here makes an iso";
  Run("mkdir d && head -c 900000 /dev/urandom > d/f && " + tool +
      " -quiet -R -J -o image d 2>/dev/null");
  const std::string iso = Read("image");
  const auto info = ProbeBytes(iso);
  ASSERT_TRUE(info.ok()) << info.status().ToString();
  EXPECT_EQ(info->format, Format::kIso);
  EXPECT_EQ(
      ProbeBytes(iso.substr(0, iso.size() / 2 / 512 * 512)).status().code(),
      base::Code::kDataLoss);
}

}  // namespace
}  // namespace bim::image
