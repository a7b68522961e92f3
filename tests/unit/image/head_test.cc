// CheckHead: what is no disk image, and above all what must not be refused.
#include <gmock/gmock.h>

#include <random>

#include "tests/unit/image/images.h"

namespace bim::image {
namespace {

using std::string_literals::operator""s;
using testing::HasSubstr;

// As the first of many bytes: padded to a window of 512 with `fill`.
std::string Padded(std::string head, char fill) {
  head.resize(std::max<size_t>(head.size(), 4096), fill);
  return head;
}

base::Status Whole(std::string_view content, std::string_view type = "") {
  return CheckHead(AsBytes(content), true, type);
}
base::Status Part(std::string_view content, std::string_view type = "") {
  return CheckHead(AsBytes(content), false, type);
}

void ExpectRefused(const base::Status& status, std::string_view words) {
  EXPECT_EQ(status.code(), base::Code::kFailedPrecondition) << words;
  EXPECT_THAT(status.message(), HasSubstr(std::string(words)));
}

TEST(CheckHeadText, RefusesHtml) {
  for (const std::string start :
       {"<!DOCTYPE html>",
        "<!doctype HTML PUBLIC \"-//W3C//DTD HTML 4.01//EN\">", "<html>",
        "<HTML lang=en>", "<head>", "<body class='x'>", "<script src=x>",
        "<!-- a comment -->", "\xEF\xBB\xBF<html>", "\r\n\t  <html>",
        "\xEF\xBB\xBF\n<!DOCTYPE html>", "<h1>404</h1>",
        "<title>Login</title>"}) {
    SCOPED_TRACE(start);
    ExpectRefused(Part(Padded(start, ' ')), "an HTML page");
    ExpectRefused(Whole(start), "an HTML page");
    ExpectRefused(Whole(start + "\n"), "an HTML page");
    // One byte that is no text, and it is a raw disk after all.
    std::string binary = Padded(start, ' ');
    binary[500] = '\0';
    EXPECT_TRUE(Part(binary).ok());
  }
}

TEST(CheckHeadText, TellsWhatCame) {
  const base::Status status =
      Part(Padded("<!DOCTYPE html>\r\n<title>Login\x01\x02", 'x'));
  EXPECT_TRUE(status.ok()) << "control characters: not a text";
  EXPECT_EQ(Whole("<!DOCTYPE html>\r\n  <title>Login</title>\n").message(),
            "the source sent an HTML page, not a disk image: "
            "\"<!DOCTYPE html> <title>Login</title>\"");
  const base::Status lengthy =
      Part(Padded("<html>" + std::string(100, 'y'), 'x'), "text/html");
  EXPECT_EQ(lengthy.message(),
            "the source sent an HTML page, not a disk image: \"<html>" +
                std::string(54, 'y') + "...\" (Content-Type: \"text/html\")");
}

TEST(CheckHeadText, HtmlInAnOldEncodingIsQuotedAsUtf8) {
  ExpectRefused(Whole("<html><title>Zugriff verweigert f\xFCr"s),
                R"(verweigert f\xfcr")");
}

TEST(CheckHeadText, UntrustedNamesCannotForgeALog) {
  const base::Status status =
      Whole("{}", "text/plain\r\nforged: \x1B[2J\xE2\x80\xAE" +
                      std::string(500, 'z'));
  EXPECT_THAT(status.message(), HasSubstr(R"(forged: \x1b[2J\xe2\x80\xae)"));
  EXPECT_LT(status.message().size(), 250u);
}

TEST(CheckHeadText, RefusesXmlAndJson) {
  for (const std::string start :
       {"<?xml version=\"1.0\"?>", "<Error><Code>NoSuchKey</Code>",
        "<ListBucketResult xmlns='x'>", "<!DOCTYPE svg>", "<ns:tag/>"}) {
    SCOPED_TRACE(start);
    ExpectRefused(Part(Padded(start, ' ')), "an XML document");
    ExpectRefused(Whole(start), "an XML document");
  }
  for (const std::string start :
       {"{\"error\": 1", "{}", "{ \n \"a\"", "[1, 2", "[{\"a\"", "[]", "[-1",
        "[null", "[true", "\xEF\xBB\xBF{\"a\"", "  [\"x\""}) {
    SCOPED_TRACE(start);
    ExpectRefused(Part(Padded(start, ' ')), "a JSON document");
    ExpectRefused(Whole(start), "a JSON document");
  }
  ExpectRefused(Whole("\"not \\\"found\\\"\"\n"), "a JSON document");
}

TEST(CheckHeadText, TextOfNoKindOnlyIfProbeWouldRefuseItsSize) {
  ExpectRefused(Whole("404 page not found\n", "text/plain"),
                "a text of 19 bytes, not a disk image: \"404 page not found\" "
                "(Content-Type: \"text/plain\")");
  ExpectRefused(Whole("404 page not found\n"), "a text of 19 bytes");
  EXPECT_TRUE(Part("404 page not found\n").ok());
  EXPECT_TRUE(Whole("404 page\0"s).ok());
  for (const size_t size : {512, 1024, 4096, 1 << 20}) {
    EXPECT_TRUE(Whole(std::string(size, 'A')).ok()) << size;
    EXPECT_TRUE(Whole(std::string(size, 'A'), "text/plain").ok()) << size;
    EXPECT_TRUE(Part(std::string(size, 'A'), "text/html").ok()) << size;
  }
}

TEST(CheckHeadText, ContentTypeDecidesNothing) {
  const std::string zeros(4096, '\0');
  for (const char* type :
       {"text/html", "application/gzip", "application/json", "x"}) {
    EXPECT_TRUE(Part(zeros, type).ok()) << type;
    EXPECT_FALSE(Part(Padded("<html>", ' '), "application/octet-stream").ok());
  }
}

TEST(CheckHeadText, AlmostTextIsARawDisk) {
  for (const std::string start :
       {"<", "<AAAA", "< html", "{", "{a", "[", "[x", "\"", "\"abc", "<3>",
        "plain", "<!", "<!do"}) {
    SCOPED_TRACE(start);
    EXPECT_TRUE(Part(Padded(start, 'A')).ok());
    EXPECT_TRUE(Whole(Padded(start, 'A')).ok());
  }
}

TEST(CheckHeadText, ACharacterCutOffByTheWindowIsStillText) {
  for (size_t pad = 0; pad < 4; ++pad) {
    std::string json = "{\"a\": \"" + std::string(pad, 'x');
    while (json.size() < 1024) json += "\xF0\x9F\x92\xBE";
    ExpectRefused(Part(json), "JSON");
    ExpectRefused(Part(json.substr(0, 512)), "JSON");
  }
  EXPECT_TRUE(Part(Padded("{\"a\": \"\xC0\x80", ' ')).ok()) << "overlong";
  EXPECT_TRUE(Part(Padded("{\"a\": \"\xED\xA0\x80", ' ')).ok()) << "surrogate";
}

TEST(CheckHead, Nothing) {
  ExpectRefused(Whole(""), "the source sent nothing");
  EXPECT_TRUE(Part("").ok());
}

TEST(CheckHead, RefusesForeignImages) {
  const auto foreign = [](std::string head, std::string_view name) {
    SCOPED_TRACE(name);
    const base::Status status = Part(Padded(std::move(head), '\0'));
    ExpectRefused(status, "the source sent a " + std::string(name) + " image");
    EXPECT_THAT(status.message(), HasSubstr("qemu-img convert -O qcow2"));
  };
  foreign("KDMV\1\0\0\0"s, "VMDK");
  foreign("KDMV\3\0\0\0"s, "VMDK");
  foreign("# Disk DescriptorFile\nversion=1\n", "VMDK");
  foreign("# x\n \n#y\r\nversion=2\r\nRW 1 FLAT \"/etc/shadow\"\n", "VMDK");
  foreign("version=3\n", "VMDK");
  foreign("vhdxfile", "VHDX");
  foreign("conectix", "VHD");
  foreign("QED\0\0\0\1\0"s, "QED");
  foreign("QFI\xFB\0\0\0\1"s, "qcow (version 1)");
  foreign("WithoutFreeSpace", "Parallels");
  std::string vdi(128, '\0');
  vdi.replace(0, 4, "<<< ");
  vdi.replace(0x40, 4, "\x7F\x10\xDA\xBE");
  foreign(vdi, "VDI");
  // Neighbours that belong to no such format.
  EXPECT_TRUE(Part(Padded("KDMV\0\0\0\0"s, '\0')).ok());
  EXPECT_TRUE(Part(Padded("KDMV\4\0\0\0"s, '\0')).ok());
  EXPECT_TRUE(Part(Padded("QED\0\1\0\0\0"s, '\0')).ok());
  EXPECT_TRUE(Part(Padded("version=4\n", '\0')).ok());
  EXPECT_TRUE(
      Part(Padded(std::string(64, '\0') + "\x7F\x10\xDA\xBE", '\0')).ok());
  EXPECT_TRUE(Part(Padded("LUKS\xBA\xBE\0\2"s, '\0')).ok());
}

TEST(CheckHead, MagicAloneIsNotEnough) {
  for (const std::string& start :
       {"\x1F\x8B\x07"s, "\x1F\x8B\x08\xE0"s, "BZh9"s,
        "BZh0\x31\x41\x59\x26\x53\x59"s, "PK\3\4\x99"s, "PK\1\2"s,
        "\x28\xB5\x2F\xFD\x08"s, "\x04\x22\x4D\x18\0\0"s,
        "\x50\x2A\x4D\x18\4\0\0\0zzzz"s, "\x50\x2A\x4D\x18\xFF\xFF\xFF\xFF"s,
        "\xFD\x37zXZ\1"s}) {
    EXPECT_TRUE(Part(Padded(start, '\0')).ok())
        << testing::PrintToString(start);
  }
  std::string tar(512, '\0');
  tar.replace(257, 5, "ustar");
  EXPECT_TRUE(Part(tar).ok()) << "no checksum";
  tar.replace(148, 7, "0000001");
  EXPECT_TRUE(Part(tar).ok()) << "wrong checksum";
}

TEST(CheckHead, RefusesArchivesThatNoToolHereMakes) {
  ExpectRefused(Part(Padded("7z\xBC\xAF\x27\x1C\0\4"s, '\0')), "a 7z archive");
  ExpectRefused(Part(Padded("Rar!\x1A\7\0"s, '\0')), "a rar archive");
  ExpectRefused(Part(Padded("Rar!\x1A\7\1\0"s, '\0')), "a rar archive");
  ExpectRefused(Part(Padded("PK\5\6"s, '\0')), "a zip archive");
  ExpectRefused(
      Part(Padded("\x50\x2A\x4D\x18\4\0\0\0abcd\x28\xB5\x2F\xFD"s, '\0')),
      "a zstd-compressed file");
  ExpectRefused(Part(Padded("\x02\x21\x4C\x18\0\1\0\0"s, '\0')),
                "an lz4-compressed file");
}

// A qcow2 that Probe will refuse for its header need not be fetched at all.
TEST(CheckHead, JudgesTheHeaderOfAQcow2) {
  std::string image = SmallQcow2();
  EXPECT_TRUE(Part(image.substr(0, 512)).ok());
  EXPECT_TRUE(Part(image.substr(0, 100)).ok()) << "too little to judge";
  EXPECT_TRUE(Part(image.substr(0, 4)).ok());
  Store64(image, 8, 300);
  Store32(image, 16, 11);
  image.replace(300, 11, "/etc/shadow");
  ExpectRefused(Part(image.substr(0, 512)), "backing file \"/etc/shadow\"");
}

TEST(CheckHead, RandomDisksAreNeverRefused) {
  std::mt19937_64 random(20240607);
  std::string head(4096, '\0');
  for (int i = 0; i < 10000; ++i) {
    for (size_t at = 0; at < head.size(); at += 8) {
      const uint64_t word = random();
      std::memcpy(head.data() + at, &word, 8);
    }
    ASSERT_TRUE(Part(head).ok()) << "iteration " << i;
    ASSERT_TRUE(Whole(head).ok()) << "iteration " << i;
  }
}

// Everything that begins like something, cut at every length: no verdict may
// read beyond the bytes it was given (that is for ASan to see).
TEST(CheckHead, EveryPrefixIsJudgedWithinItsBounds) {
  std::string tar(512, '\0');
  tar.replace(257, 5, "ustar");
  for (const std::string& start :
       {SmallQcow2().substr(0, 600), tar, "BZh9\x31\x41\x59\x26\x53\x59"s,
        "\x1F\x8B\x08\0\0\0\0\0\0\3"s, "PK\3\4\x14\0\0\0\x08\0"s + tar,
        "KDMV\1\0\0\0"s, "QED\0\0\0\1\0\0\0\0\0\0\0\0\0"s, "# a\nversion=1\n"s,
        "\x50\x2A\x4D\x18\4\0\0\0abcd\x28\xB5\x2F\xFD\0"s,
        "<html \xF0\x9F\x92\xBE>"s, "{\"\xF0\x9F\x92\xBE\"}"s, "\"\\"s,
        "<<< "s + std::string(60, '\0') + "\x7F\x10\xDA\xBE"s}) {
    for (size_t size = 0; size <= start.size(); ++size) {
      // On the heap and of exactly this size.
      const auto bytes = AsBytes(start).first(size);
      const std::vector<std::byte> head(bytes.begin(), bytes.end());
      (void)CheckHead(head, true, "");
      (void)CheckHead(head, false, "");
    }
  }
}

// ---- Real archives.

class CheckHeadTools : public ToolTest {
 protected:
  void ExpectKind(const std::string& tool, const std::string& command,
                  const std::string& file, const std::string& words) {
    if (!Have(tool)) GTEST_SKIP() << tool << " is not installed";
    Run("head -c 300000 /dev/zero > disk; head -c 9000 /dev/urandom >> disk");
    Run(command);
    const std::string content = Read(file);
    const base::Status status = CheckHead(
        AsBytes(content).first(std::min<size_t>(content.size(), 4096)),
        content.size() <= 4096, "");
    ExpectRefused(status, words);
    EXPECT_THAT(status.message(), HasSubstr("expected qcow2, raw or iso: "));
  }
};

TEST_F(CheckHeadTools, Gzip) {
  ExpectKind("gzip", "gzip disk", "disk.gz",
             "the source sent a gzip-compressed file; expected qcow2, raw or "
             "iso: decompress it first");
}
TEST_F(CheckHeadTools, GzipWithoutName) {
  ExpectKind("gzip", "gzip -n -1 < disk > out", "out",
             "a gzip-compressed file");
}
TEST_F(CheckHeadTools, Xz) {
  ExpectKind("xz", "xz disk", "disk.xz", "an xz-compressed file");
}
TEST_F(CheckHeadTools, Zstd) {
  ExpectKind("zstd", "zstd -q disk", "disk.zst", "a zstd-compressed file");
}
TEST_F(CheckHeadTools, ZstdFromAStream) {
  ExpectKind("zstd", "zstd -q --long=27 < disk > out", "out",
             "a zstd-compressed file");
}
TEST_F(CheckHeadTools, Bzip2) {
  ExpectKind("bzip2", "bzip2 disk", "disk.bz2", "a bzip2-compressed file");
}
TEST_F(CheckHeadTools, Bzip2OfNothing) {
  ExpectKind("bzip2", "bzip2 < /dev/null > out", "out",
             "a bzip2-compressed file");
}
TEST_F(CheckHeadTools, Lz4) {
  ExpectKind("lz4", "lz4 -q disk out", "out", "an lz4-compressed file");
}
TEST_F(CheckHeadTools, Lz4Legacy) {
  ExpectKind("lz4", "lz4 -q -l disk out", "out", "an lz4-compressed file");
}
TEST_F(CheckHeadTools, Zip) {
  ExpectKind("python3", "python3 -m zipfile -c out disk", "out",
             "a zip archive");
}
TEST_F(CheckHeadTools, TarGnu) {
  ExpectKind("tar", "tar --format=gnu -cf out disk", "out", "a tar archive");
}
TEST_F(CheckHeadTools, TarPosix) {
  ExpectKind("tar", "tar --format=pax -cf out disk", "out", "a tar archive");
}
TEST_F(CheckHeadTools, TarUstar) {
  ExpectKind("tar", "tar --format=ustar -cf out disk", "out", "a tar archive");
}

TEST_F(CheckHeadTools, ForeignImagesOfQemu) {
  if (!Have("qemu-img")) GTEST_SKIP() << "qemu-img is not installed";
  const std::pair<const char*, const char*> kinds[] = {
      {"vmdk", "a VMDK"},
      {"vhdx", "a VHDX"},
      {"vdi", "a VDI"},
      {"vpc", "a VHD"},
      {"qed", "a QED"},
      {"qcow", "a qcow (version 1)"},
      {"vmdk -o subformat=monolithicFlat", "a VMDK"},
      {"parallels", "a Parallels"}};
  for (const auto& [format, words] : kinds) {
    SCOPED_TRACE(format);
    Run("rm -f image; qemu-img create -q -f " + std::string(format) +
        " image 8M");
    const std::string content = Read("image");
    ExpectRefused(CheckHead(AsBytes(content).first(512), false, ""), words);
    if (content.size() % 512 == 0)
      ExpectRefused(ProbeBytes(content).status(), words);
  }
}

}  // namespace
}  // namespace bim::image
